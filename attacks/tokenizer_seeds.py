"""A tokenizer of SentencePiece's kind, to attack: Unigram, with a character map."""

import base64
import zlib
from typing import Any

CHARSMAP = zlib.decompress(
    base64.b85decode(
        "c-kG)d63s*90%~v?_2&bWyVbZG-f)85;``iEtCkkJ4s5?R5o-;DdD%-Vij54wWW0HTBU2*l&G-Mt&Q#jVb(2L@%s7Byq@>xdFK0_XP$XJ->4iBRU`A"
        "HQx`>)R!<`Lf{2UF=g5>4>4Nb|WagFB>B>o@>qjgL?>-mdvvjecnw(oBqKaI1Hi@<CD@FOHBxYY2v2j!qmsl^kC!(g!YVm$i5+xN$T&Au=Z7!uQ^|+i"
        "XxQeT}65B>Y8gUH`Xu`ELCW~e?rzzLblIzK)1+8e!4cy4h+`>(?;WlokEw^$fchQbJxR?958^?)`bfP^SxSt2;Oc%QG5M6nYhv`XodhjT{d4yi{r5}C"
        "fC(%dt=W!k*hXD-a37%vKPcewW3}ZM$d76<t%QKANd0t=?t}jOOVx|GeWh^g|#~5B=950j4YfNA~ukr>Hd7T2LFqKJ6W(G5v#&l-$CWXx6E#@(Yxh!N"
        "6^I5>#EM+lESi#E3^k2ksR<W8Q-eE24c$YO4^B(Kjz(zjE^dBXBm{FLDO>#3^*~UkF%%^<Dc0OSTUr@^D>}C%;*~NaoWH0+T$X6VojKdt^YYuUuC>6&"
        "~rsAmj7^nG$lbqrV-}5csQJ$TOa`^*4@(aK66F>6@fASl@^Ec->%U_)5Un=+~{{Qi^BI|f=UK8!#Hz&3%i34lO^2+k##OP)5AC)4cZv"
    )
)
"""A character map that sentencepiece wrote for ten rules: Ａ to A, ﬁ to fi, U+3000 and U+00A0 to a space, U+0001 to nothing,
① to 1, e and U+0301 to é, ½ to 1⁄2, ｶﾞ to ガ, ﷺ to three letters."""


def unigram(document: Any) -> Any:
    """A tokenizer.json with as many tokens as another one, and the same pieces except for spaces."""
    pieces = sorted(document["model"]["vocab"], key=document["model"]["vocab"].__getitem__)
    vocab = [[piece.replace("Ġ", "▁"), -float(index % 97) / 7] for index, piece in enumerate(pieces)]
    charsmap = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(CHARSMAP).decode()}
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s{2,}|[\n\r\t]"}, "content": " "}
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    punctuation = {"type": "Punctuation", "behavior": "Isolated"}
    return {
        **document,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Lowercase"}, spaces, charsmap, {"type": "NFC"}, strip],
        },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, punctuation, metaspace]},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False},
    }
