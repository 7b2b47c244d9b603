"""Figures as custom elements, and the linker that puts them into one offline page."""
