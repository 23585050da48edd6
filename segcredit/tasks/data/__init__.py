"""From rows and files to prompts: columns, templates, order, drawings."""
