"""The photographs: pocket scenes painted into photographs and seen by a real vision tower; `make reproduce-photos` compares all methods."""
