"""Speed and memory of our ViT beside other libraries: `make bench`."""
