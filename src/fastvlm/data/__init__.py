"""Training data made by code: pictures of documents with exact ground truth."""
