"""From prompts to verified, scored completions: sampled, branched, continued or given."""
