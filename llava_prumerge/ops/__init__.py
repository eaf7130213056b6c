"""Pure tensor mathematics. Imports torch alone; knows no model and no method.

Legend of shape letters, used throughout the repository: B sequences, N images, P patches, K kept, L sequence length, T text
tokens, C CLIP width, D language-model width, H heads, R query rows, S tower tokens (class token and patches).
"""
