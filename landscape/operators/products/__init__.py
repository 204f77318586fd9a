"""Product engines: how a derivative of a loss multiplies a block of vectors."""
