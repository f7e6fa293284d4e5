"""Recipes that cannot be carried out, each with words of its refusal."""

from tests.builder.assemble.graphs import ARRAYS, CASCADE, CUT, ENCODING, TOP, WHOLE

_SEGMENT = TOP + '[[segments]]\nexit = "final"\nfile = "net.onnx"\ninputs = {x = "pixel_values"}\n'

BAD_RECIPES: dict[str, tuple[str, str]] = {
    "unknown tensor": (WHOLE + CUT.replace('"relu1"', '"relu11"') + ENCODING, "the nearest names are relu1"),
    "cut at a weight": (WHOLE + CUT.replace('"relu1"', '"w1"') + ENCODING, "is a weight"),
    "cut at a shape": (WHOLE + CUT.replace('"relu1"', '"pages"') + ENCODING, "with a row a page"),
    "cut at the logits": (WHOLE + CUT.replace('"relu1"', '"out"') + ENCODING, "name a tensor before it"),
    "unknown key": (WHOLE + CUT.replace("head", "haed") + ENCODING, "did you mean head?"),
    "head is no file": (WHOLE + CUT.replace('"train"', '"none.onnx"') + ENCODING, "none.onnx: cannot be read"),
    "head of another tensor": (
        WHOLE + CUT.replace('"train"', '"head.onnx"') + ENCODING,
        "head.onnx: its input 'h' is [?, 6, 4, 4], and",
    ),
    "cut that does not separate": (
        WHOLE + CUT.replace("relu1", "late") + CUT.replace("early", "later") + ENCODING,
        "is computed already for the exits before it (early)",
    ),
    "cut behind the logits": (WHOLE + CUT.replace("relu1", "prob") + ENCODING, "comes after the logits"),
    "no such axis": (
        WHOLE + CUT + "axis = 9\n" + ENCODING,
        "net.onnx: [[cut]] 'early' tensor 'relu1' float32 [B, 4, 8, 8]: axis is 9",
    ),
    "no such layers": (WHOLE + CUT + "layers = 3\n" + ENCODING, "layers: found 3"),
    "graph is not there": (WHOLE.replace("net.onnx", "no.onnx") + ENCODING, "no.onnx: cannot be read"),
    "opset is too new": (
        WHOLE.replace("net.onnx", "opset.onnx") + ENCODING,
        "written in opset 99, expected at most 23",
    ),
    "logits are a weight": (WHOLE + 'logits = "w3"\n' + ENCODING, "logits: the tensor 'w3' does not exist"),
    "logits are features": (WHOLE + 'logits = "relu1"\n' + ENCODING, "expected class logits float32 [B, 3]"),
    "gate of another shape": (
        _SEGMENT + 'gate = "flat"\n' + ENCODING,
        "gate: 'flat' is float32 [B, 6], expected float32 [B, 1]",
    ),
    "gate is a weight": (_SEGMENT + 'gate = "w3"\n' + ENCODING, "gate: the tensor 'w3' does not exist"),
    "train without a head": ('train = "pages"\n' + WHOLE + ENCODING, 'train: no [[cut]] has head = "train"'),
    "data is not there": (WHOLE.replace("pages", "no") + ENCODING, "no: no such folder"),
    "labels are no file": ('labels = "a\\u0000b"\n' + WHOLE.split("\n", 1)[1] + ENCODING, "labels: cannot read"),
    "labels do not fit the logits": (
        WHOLE.replace('["blue"', '["amber", "blue"') + ENCODING,
        "has 3 classes, and labels names 4",
    ),
    "arrays nobody reads": (ARRAYS.replace('["measures"]', '["measures", "more"]'), "arrays: no graph reads 'more'"),
    "arrays twice": (
        ARRAYS.replace('["measures"]', '["measures", "measures"]'),
        "arrays: two inputs have the same name",
    ),
    "arrays that are a page's": (ARRAYS.replace("measures", "pixel_values"), "inputs.pixel_values: found"),
    "arrays not declared": (ARRAYS.replace('arrays = ["measures"]', ""), "or list it in arrays"),
    "arrays are pages": (ARRAYS.replace("rows.npz", "pages"), "the package reads arrays"),
    "arrays of another shape": (ARRAYS.replace("rows.npz", "wide.npz"), "is float32 [90, 6], expected float32 [B, 5]"),
    "arrays without labels": (ARRAYS.replace("rows.npz", "bare.npz"), "no array 'label'"),
    "arrays with another label": (ARRAYS.replace("rows.npz", "purple.npz"), "'purple' is not a label of the model"),
    "arrays with another class": (ARRAYS.replace("rows.npz", "index.npz"), "label: found 3, expected 0 to 2"),
    "arrays are not numbers": (
        ARRAYS.replace("rows.npz", "nan.npz"),
        "nan.npz: row 3: logits of 'final' are not finite",
    ),
    "arrays for a head are not numbers": (
        ARRAYS.replace("rows.npz", "nan.npz") + CUT.replace("relu1", "flat"),
        "'measures', row 3",
    ),
    "arrays that train a head are not numbers": (
        ARRAYS.replace("[graph]", 'train = "nan.npz"\n[graph]') + CUT.replace("relu1", "flat"),
        "nan.npz: 'measures', row 3: found nan",
    ),
    "further encoding is missing": (CASCADE.split("[encodings.large]")[0], "add its table [encodings.large]"),
    "first encoding is missing": (
        CASCADE.split("[encoding]")[0] + "[encodings.large]\n" + CASCADE.split("[encodings.large]")[1],
        "[encodings] without [encoding]",
    ),
    "further encoding is misnamed": (
        CASCADE.replace("large.p", "Large.p").replace("encodings.large", "encodings.Large"),
        'found "Large"',
    ),
    "exit twice": (WHOLE + CUT + CUT + ENCODING, "is named twice"),
    "input is not named": (WHOLE.replace('inputs = {x = "pixel_values"}', "") + ENCODING, "is no input of a package"),
    "unknown graph input": (WHOLE.replace("{x =", "{y =") + ENCODING, "the graph's input 'y' does not exist"),
    "neither graph nor segments": (TOP + ENCODING, "neither [graph] nor [[segments]]"),
    "cut without graph": (
        TOP + '[[segments]]\nexit = "final"\nfile = "net.onnx"\n' + CUT + ENCODING,
        "[[cut]] without [graph]",
    ),
    "encoding is missing": (WHOLE, "image_mode, image_mean, image_std: missing"),
    "no such size": (WHOLE + ENCODING + "image_size = 0\n", "the graph reads 16"),
    "exit is a path": (WHOLE + CUT.replace('exit = "early"', 'exit = "a/b"') + ENCODING, "exits[0]"),
    "encodings of one graph": (WHOLE + ENCODING + "[encodings.large]\nimage_size = 8\n", "[encodings] with [graph]"),
    "arrays and pages": ('arrays = ["a"]\n' + WHOLE + ENCODING, "arrays beside [encoding]"),
    "encoding that nobody reads": (
        TOP
        + '[[segments]]\nexit = "final"\nfile = "net.onnx"\ninputs = {x = "pixel_values"}\n'
        + ENCODING
        + "[encodings.large]\nimage_size = 8\n",
        "[encodings.large]: no graph reads an input that it makes",
    ),
    "another size": (WHOLE + ENCODING + "image_size = 8\n", "the graph reads 16"),
    "divides by zero": (WHOLE + ENCODING.replace("std = [0.5", "std = [0.0"), "a number that divides"),
    "labels twice": ('labels = ["red", "red"]\n' + WHOLE.split("\n", 1)[1] + ENCODING, "labels"),
    "labels are others": (WHOLE.replace("blue", "purple") + ENCODING, "is not a label of the model"),
    "no TOML": ("labels = [", "not valid TOML"),
    "nobody makes it": (
        TOP + '[[segments]]\nexit = "final"\nfile = "net.onnx"\ninputs = {x = "hidden"}\n' + ENCODING,
        "which no segment before makes",
    ),
    "names collide": (
        TOP
        + '[[segments]]\nexit = "early"\nfile = "net.onnx"\ninputs = {x = "pixel_values"}\noutputs = {prob = "h"}\n'
        + '[[segments]]\nexit = "final"\nfile = "net.onnx"\ninputs = {x = "pixel_values"}\noutputs = {prob = "h"}\n'
        + ENCODING,
        "rename it in outputs",
    ),
    "reads no pages": (
        TOP + '[[segments]]\nexit = "final"\nfile = "net.onnx"\ninputs = {x = "input_ids"}\n' + ENCODING,
        "[encoding] tokenizer: missing",
    ),
}
