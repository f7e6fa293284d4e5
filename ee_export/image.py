"""Image files: which formats are opened, and how a file becomes the one picture that every reader of a page gets."""

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
"""Pillow's names of the formats that are opened. MPO, of which the first picture is read, begins as JPEG does."""

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .tif .tiff .bmp .webp .gif .pbm .pgm .ppm .pnm .pfm .jp2 .j2k .j2c .jpc .jpf .jpx .avif".split()
)
"""Suffixes, in lower case, of files in these formats."""
