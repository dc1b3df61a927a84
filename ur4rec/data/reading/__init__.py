"""Reads files into tables, and tables into interactions."""
