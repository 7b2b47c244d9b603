"""How the embedded models are trained: one file and one command a model, seeded."""
