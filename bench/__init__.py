"""Measures this program beside other systems that run the same order saga, and what each of its guarantees costs."""
