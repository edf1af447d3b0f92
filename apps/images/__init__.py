"""Makes what a thread shows: safe renditions of attached pictures, and voice cards of transcripts."""
