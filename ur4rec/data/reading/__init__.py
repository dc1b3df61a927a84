"""Files into tables, and tables into interactions."""
