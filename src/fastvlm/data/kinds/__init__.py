"""The kinds of documents, one file each, found by name.

A kind is a module with `draw(sheet)`, which draws one document on `sheet.page` and sets its fields, tables and questions, and with these optional
constants: `ASPECT`, the natural width / height of its pages (least, most), and `SIZES`, the sizes in pixels to choose from when none is asked for.
"""
