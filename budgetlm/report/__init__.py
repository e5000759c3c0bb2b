"""The evidence: records -> figures -> one HTML file that opens anywhere."""
