"""Pull models where swin_hf is installed, so that no code of their repositories is run, and convert from the Hub.

folders: what was pushed, by its name, with inputs and outputs.
"""

import os

import torch
from prelude import GIVEN, say
from transformers import AutoImageProcessor, AutoModelForImageClassification

import swin_hf
from swin_hf.convert import main

name = "org/swin-tiny-custom"
pixel_values, expected = torch.load(GIVEN["folders"]["classifier.pt"])
model = AutoModelForImageClassification.from_pretrained(name)
say("registered", type(model) is swin_hf.SwinHfForImageClassification and torch.equal(model(pixel_values).logits, expected))
say("processor", type(AutoImageProcessor.from_pretrained(name)).__module__)
larger = AutoModelForImageClassification.from_pretrained(name, image_size=32)
say("at another size", larger.config.image_size)

say("converted from the Hub", main([name, "ours", "--revision", "v1"]))
say("of no such repository", main(["org/nothing", "never"]))
say("timm's, whose names have dots", main(["timm/swin_tiny.ms_in1k", "timms"]))
say("left", sorted(os.listdir()))
