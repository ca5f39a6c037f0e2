# pyright: reportMissingImports=false, reportMissingModuleSource=false
"""LaTeX between dollars as MathML, which browsers draw by themselves: no script, no download."""

import html
import re

from markdown import Markdown
from markdown.extensions import Extension
from markdown.postprocessors import Postprocessor
from math_core import LatexToMathML

# What pymdownx.arithmatex makes of $...$ and $$...$$, with `generic = true`.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


class _ToMathML(Postprocessor):
    def run(self, text: str) -> str:
        convert = LatexToMathML().convert_with_local_state

        def inline(match: re.Match[str]) -> str:
            return convert(html.unescape(match[1]), displaystyle=False)

        def block(match: re.Match[str]) -> str:
            drawn = convert(html.unescape(match[1]), displaystyle=True)
            return f'<div class="equation">{drawn}</div>'

        return _INLINE.sub(inline, _BLOCK.sub(block, text))


class MathMLExtension(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.postprocessors.register(_ToMathML(md), "mathml", 0)  # after all others


def makeExtension(**settings) -> MathMLExtension:
    return MathMLExtension(**settings)
