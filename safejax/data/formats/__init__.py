"""Readers, one file format each: from a file to the `Contents` of which `safejax.data.reading` makes a data set."""
