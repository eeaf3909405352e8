"""DICOM: series of images, SEG and RTSTRUCT."""
