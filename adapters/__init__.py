"""The adapters, one package per framework. Importing this one imports none of them."""
