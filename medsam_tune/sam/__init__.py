"""Segment Anything, differentiable and batched. Knows nothing of files of scans."""
