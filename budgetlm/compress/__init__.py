"""Compression: smaller or cheaper models as priced options of a recipe, judged by what would be deployed."""
