"""Networks of the zoo that are no Hugging Face models: plain torch modules, one file a family."""
