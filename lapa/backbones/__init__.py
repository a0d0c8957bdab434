"""Vision-language backbones: (images, texts) -> the hidden state of the last token."""
