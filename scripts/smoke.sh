#!/usr/bin/env bash
# Make the environment if it is missing, train a tiny model, evaluate it, and say where everything is.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

OUTPUT=${OUTPUT:-output}
"$PYTHON" train.py --name smoke_train --dataset synthetic --model_type testing --img_size 64 \
  --num_steps 10 --eval_every 5 --train_batch_size 4 --eval_batch_size 2 --output_dir "$OUTPUT" \
  --prefer_mps --tiny_train_subset synthetic_tiny --tiny_infer_subset synthetic_tiny
"$PYTHON" eval.py --name smoke_eval --checkpoint "$OUTPUT/smoke_train/checkpoints/ckpt.bin" \
  --eval_batch_size 2 --output_dir "$OUTPUT" --prefer_mps --tiny_infer_subset synthetic_tiny

echo
echo "everything is under $(cd "$OUTPUT" && pwd): smoke_train/, smoke_eval/, tb/"
echo "scalars: $PYTHON -m tensorboard.main --logdir $OUTPUT/tb"
if [ "$PYTHON" = "$PWD/.venv/bin/python" ] && [ -z "${VIRTUAL_ENV:-}" ]; then
  echo "next, in this shell: source .venv/bin/activate"
fi
