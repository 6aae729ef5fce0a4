"""Classes of models/glyphs: digits and letters; letters whose two cases look alike are one class."""
DIGITS, UPPER, OWN_CASE = "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abdefghnqrt"
CHARACTERS = DIGITS + UPPER + UPPER.lower()
LABELS = list(DIGITS + UPPER + OWN_CASE)            # 47
CLASS_OF = [LABELS.index(c if c in LABELS else c.upper()) for c in CHARACTERS]
