"""The plug-in's parts. pixels, layers, dialog and procedures need GIMP; the others do not."""
