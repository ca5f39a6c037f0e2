"""What the papers print, beside what was measured."""
