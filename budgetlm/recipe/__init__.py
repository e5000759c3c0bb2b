"""Recipes: what a search samples, which values it may take, and what a recipe becomes at a given budget."""
