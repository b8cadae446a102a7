"""Write what the golden runs read: photos, lists, weights; the same bytes on every machine."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_inputs(folder: Path) -> None:
    """Write the photos, lists and weights that the commands read; a run draws the flowers."""
    names = [
        _write_image(folder / "photos" / label / f"{number}.png")
        for label in ("daisy", "poppy", "rose")
        for number in range(8)
    ]
    rows = [
        f"{name.relative_to(folder)},{name.parent.name},{'val' if number % 4 == 3 else 'train'}"
        for number, name in enumerate(names)
        if number not in (9, 10)  # the classes differ in size
    ]
    (folder / "photos.csv").write_text("\n".join(["path,label,split", *rows]) + "\n", "utf-8")
    for split, count in (("train", 4), ("val", 2)):
        for label in ("daisy", "poppy"):
            for number in range(count):
                _write_image(folder / "broken" / split / label / f"{number}.png")
    # Whole at its beginning and its end, as one sees without decoding it.
    path = folder / "broken" / "train" / "poppy" / "1.png"
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes(len(content) - 200) + content[-100:])
    (folder / "ids.txt").write_text("image_00172\nimage_00361\nimage_00155\n", "utf-8")
    _write_timm_weights(folder / "timm.safetensors")


def _write_image(path: Path) -> Path:
    """Write a PNG whose content follows from its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(f"{path.parent.name}/{path.name}".encode(), "little")
    generator = np.random.default_rng(seed)
    height, width = generator.integers(33, 60, size=2)
    Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def _write_timm_weights(path: Path) -> None:
    """Write weights of the model type `testing` under timm's names, for images of 32 px.

    Safetensors by hand: length of the header, header, numbers. The numbers are integers times a
    power of two, so no arithmetic of the machine enters the bytes and with them the config hash.
    """
    width, hidden = 64, 128
    block = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (hidden, width),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden),
        "mlp.fc2.bias": (width,),
    }
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 5, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        **{f"blocks.{i}.{name}": shape for i in range(3) for name, shape in block.items()},
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (7, width),
        "head.bias": (7,),
    }
    generator = np.random.default_rng(5)
    header, numbers = {}, b""
    for name, shape in shapes.items():
        values = generator.integers(-64, 65, size=shape).astype("<f4") / 1024
        if ".norm" in f".{name}" and name.endswith("weight"):
            values += 1
        begin, numbers = len(numbers), numbers + values.tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(numbers)]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
