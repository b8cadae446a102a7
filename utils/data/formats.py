"""Name the image formats that we read: the endings of their files, and Pillow's names.

One list for every reader and every place that opens an image.
"""

# Endings of files that are images, in lower case. What else lies beside them is counted and said.
IMAGE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
    ".avif",
    ".heic",
    ".heif",
    ".hif",
)
