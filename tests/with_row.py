"""Run a program with another row of a name in the table of public weights, which only tests have.

    HF_ENDPOINT=URL python tests/with_row.py scripts/get_weights.py dinov2-s14

The row names the small DINOv2 that `tests/hub_server.py` serves as someone/dinov2_vits14.
"""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.pretrained import zoo
from models.pretrained.profiles import IMAGENET

if __name__ == "__main__":
    row = zoo.Row("someone/dinov2_vits14", "ViT-S_14", 518, IMAGENET, "tests", "nobody's")
    zoo.ZOO = {**zoo.ZOO, "dinov2-s14": row}
    del sys.argv[0]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
