"""The kinds of documents, one file each, found by name.

A kind is a module with `draw(sheet)`, which draws one document on `sheet.page` and sets its fields, tables and questions, and with these constants, all optional:

    LAYOUTS        names of the layouts of each split, {"train": ..., "val": ..., "heldout": ...}; none is in two splits
    ASPECT         natural width / height of its pages, least and most: in a picture of another shape the page gets bars
    SIZES          sizes in pixels to choose from when none is asked for
    BODY_STYLES    styles of fonts for the body ("sans", "serif", "mono", "narrow"), repeated for weight
    MIN_LINES, MIN_COLUMNS    lines and letters a line that it needs: the text is not larger than that allows

`draw` raises `canvas.PageFull` when its choices do not fit, and is called again with others.
"""
