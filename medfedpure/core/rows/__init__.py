"""What has a row for each image: how rows are asked for, dealt into parts, and written as a table."""
