"""The language of `babel`: a seeded grammar that writes its training text, its tokenizer, and its examination."""
