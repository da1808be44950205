"""What stands in a model's text: answers, boxes, tables, pages, languages. Text is never evaluated."""
