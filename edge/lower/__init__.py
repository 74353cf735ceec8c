"""From a deploy form to the bytes of a program: recipes, quantization, lowering."""
