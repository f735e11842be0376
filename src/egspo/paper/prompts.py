r"""The prompts with which d1 (arXiv 2504.12216) measured its tables, word for word: fixed data, oddities
included.

Source: ``eval/{gsm8k,math500,countdown,sudoku}.py`` in github.com/dllm-reasoning/d1. There the model's turn
was begun for it with ``<reasoning>``, which a prompt of ours does not do. Training used other prompts (the
docs pages say which).
"""

_FORM = """\
Respond in the following format:
<reasoning>
Your reasoning here
</reasoning>
<answer>
\\boxed{...}
</answer>"""
_EXPERT = (
    "You are a math expert. You will be given a question to solve. Solve it step by step. "
    "Wrap the final answer in a \\boxed{}."
)

GSM8K = f"{_EXPERT} \n{_FORM}\n\n"
"""The question follows."""

MATH500 = f'{_EXPERT}\n{_FORM}" \n\n\n'
"""The problem follows."""

COUNTDOWN = (
    "Using only the provided numbers, create an arithmetic expression that evaluates to exactly the provided "
    "target number. You may use the operations +, -, *, and / as needed, but each number must be used "
    "exactly once. Think step-by-step. After reasoning, provide only your final expression inside \\boxed{} "
    "tags without including an equals sign or the target number. For example: \\boxed{a + b * c}"
    f"{_FORM}\n\n"
)
"""``Numbers: [1, 2, 3]``, a line end and ``Target: 6`` follow."""

SUDOKU = """
Please solve the following 4x4 Sudoku puzzle. The puzzle is provided as a 16-character string reading \
left-to-right, top-to-bottom, where '0' represents empty cells.

Rules:
- Fill empty cells with digits 1-4
- Each row must contain digits 1-4 exactly once
- Each column must contain digits 1-4 exactly once
- Each 2x2 box must contain digits 1-4 exactly once

Important: Your solution must be a COMPLETE 16-character string with only the digits 1-4, representing your \
final solved grid.

Respond in this exact format:
<reasoning>
Your step-by-step solving process
</reasoning>
<answer>
[16-character solution string with no spaces or separators]
</answer>


Solve the following Sudoku puzzle: """
"""The puzzle and a line end follow."""
