"""Target recipes, shipped ones and a user's. An error names file, key and remedy."""

from pathlib import Path

import pytest

from ee_export.errors import BadRequest
from ee_export.package.recipe import SHIPPED, Range, TargetRecipe, find_recipe, find_shipped_file, read_target_recipe

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = 'backend = "tensorrt"\nprecision = "fp16"\n'


def written(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_found_by_the_name_of_their_target(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe.name == name
    assert name.rsplit("-", 1)[1] == recipe.precision
    assert recipe.profiles(256)[0].text.max == 256, "text is cut to what the model reads"
    assert find_shipped_file(name).read_text().startswith("# "), "a reader is told what it is for"


def test_a_users_recipe_is_found_by_its_path_and_has_its_name(tmp_path: Path) -> None:
    text = (
        SMALLEST
        + 'batch = [1, { min = 2, opt = 4, max = 8 }]\nint8 = {}\nfloat32 = ["softmax"]\ntiming_cache = "/t.cache"\n'
    )
    recipe = find_recipe(str(written(tmp_path, text.replace("fp16", "int8"), "a10.int8")))
    assert recipe == TargetRecipe(
        "a10.int8",
        "tensorrt",
        "int8",
        ("softmax",),
        batch=(Range(1, 1, 1), Range(2, 4, 8)),
        timing_cache="/t.cache",
    )


def test_profiles_are_every_pair_of_ranges_cut_to_the_longest_page() -> None:
    recipe = TargetRecipe(
        "r", "tensorrt", "fp16", batch=(Range(1, 1, 1), Range(2, 4, 8)), text=(Range(1, 64, 128), Range(129, 256, 512))
    )
    profiles = [(profile.batch.max, profile.text) for profile in recipe.profiles(200)]
    cut = Range(129, 200, 200)
    assert profiles == [(1, Range(1, 64, 128)), (1, cut), (8, Range(1, 64, 128)), (8, cut)]
    assert {profile.text for profile in recipe.profiles(100)} == {Range(1, 64, 100)}, (
        "a range beyond the longest page holds none"
    )
    buckets = TargetRecipe(
        "r", "tensorrt", "fp16", text=(Range(64, 64, 64), Range(256, 256, 256), Range(512, 512, 512))
    )
    assert [profile.text.max for profile in buckets.profiles(200)] == [64, 200]
    with pytest.raises(
        BadRequest, match=r"r: text: its profiles hold pages of up to 512 tokens, .* up to 600; raise max to 600"
    ):
        recipe.profiles(600)


def test_the_hash_covers_the_fields_that_change_an_engine(tmp_path: Path) -> None:
    one = read_target_recipe(written(tmp_path, SMALLEST + "# spoken\n"))
    same = read_target_recipe(
        written(tmp_path, 'precision = "fp16"\nbackend = "tensorrt"\ntiming_cache = false', "other")
    )
    unlike = read_target_recipe(written(tmp_path, SMALLEST + "builder_level = 5", "third"))
    assert len(one.hash) == 64
    assert one.hash == same.hash != unlike.hash


def test_shipped_recipes_measure_the_bias_and_one_without_the_key_carries_it(tmp_path: Path) -> None:
    assert {find_recipe(name).bias for name in SHIPPED} == {"auto"}
    assert read_target_recipe(written(tmp_path, SMALLEST)).bias == "carried"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALLEST + "builder_levle = 3", "builder_levle: unknown key; did you mean builder_level?"),
        (SMALLEST + "colour = 3", "colour: unknown key; expected one of backend, precision"),
        ('backend = "tensorrt"', "precision: missing; expected fp32, fp16, bf16, int8"),
        ('backend = "tensorrt"\nprecision = "fp61"', "precision: unknown value 'fp61'.*did you mean fp16"),
        ('backend = "tensorRT"\nprecision = "fp16"', "backend: unknown value 'tensorRT'.*did you mean tensorrt"),
        ('backend = 3\nprecision = "fp16"', "backend: found 3, expected one of tensorrt"),
        (SMALLEST + 'builder_level = "3"', 'builder_level: found "3", expected a whole number'),
        (SMALLEST + "builder_level = true", "builder_level: found true, expected a whole number"),
        (SMALLEST + "builder_level = 6", "builder_level: 6 is out of range: expected 0–5"),
        (SMALLEST + "workspace_mib = -1", "workspace_mib: -1 is out of range"),
        (SMALLEST + "strip = 1", "strip: found 1, expected true or false"),
        (SMALLEST + "timing_cache = 1", "timing_cache: found 1, expected true, false or a string"),
        (SMALLEST + 'float32 = "softmax"', 'float32: found "softmax", expected a list of softmax, layer_norm'),
        (SMALLEST + 'float32 = ["soft_max"]', "unknown value 'soft_max'.*did you mean softmax"),
        (SMALLEST + 'attention = "fused"', "attention: unknown value 'fused': expected one of operator, plain"),
        (SMALLEST + 'bias = "recompute"', "bias: unknown value 'recompute'.*did you mean recomputed"),
        (SMALLEST + "bias = true", "bias: found true, expected one of carried, recomputed, auto"),
        (SMALLEST + 'hardware_compatibility = "ampere"', "did you mean ampere_plus"),
        (SMALLEST + "batch = 4", r"batch: found (4|\[\]), expected a list of sizes"),
        (SMALLEST + "batch = []", r"batch: found (4|\[\]), expected a list of sizes"),
        (SMALLEST + 'batch = ["4"]', r'batch\[0\]: found "4", expected a size'),
        (SMALLEST + "batch = [0]", r"batch\[0\]: min 0, opt 0, max 0: expected 1 ≤ min ≤ opt ≤ max"),
        (SMALLEST + "text = [64, { min = 9, opt = 8, max = 16 }]", r"text\[1\]: min 9, opt 8, max 16"),
        (SMALLEST + "text = [{ min = 1, opt = 8 }]", r"text\[0\]\.max: missing; expected a whole number"),
        (SMALLEST + "text = [{ min = 1, opt = 8, mx = 9, max = 9 }]", r"text\[0\]\.mx: unknown key; did you mean max"),
        (SMALLEST + "text = [64, 64]", "text: the same range is listed twice"),
        (SMALLEST + "strip = true", 'strip: an engine without weights must be refitted; set refit = "identical"'),
        (
            SMALLEST + "weight_streaming = true",
            "weight_streaming: TensorRT cannot be captured.*set cuda_graphs = false",
        ),
        (SMALLEST + "max_aux_streams = 2", "max_aux_streams: a captured segment must stay on one stream"),
        (SMALLEST + 'version_compatible = true\nrefit = "any"', "version_compatible: .*cannot refit"),
        (SMALLEST + "int8 = { pages = 8 }", "int8: the precision is fp16, which takes no scales; remove the table"),
        (SMALLEST + "int8 = 8", "int8: found 8, expected key-value pairs"),
        (SMALLEST.replace("fp16", "int8") + "int8 = { pages = 0 }", r"int8\.pages: 0 is out of range"),
        (
            SMALLEST.replace("fp16", "int8") + 'int8 = { tool = "model-opt" }',
            "int8.tool: unknown value 'model-opt'.*modelopt",
        ),
        (
            SMALLEST.replace("fp16", "int8") + 'int8 = { tool = "onnxruntime", method = "entropy" }',
            r"int8\.method: onnxruntime finds it for pages of one length only",
        ),
        ('backend = "onnxruntime-cuda"\nprecision = "fp16"', "cuda_graphs: .*set cuda_graphs = false"),
        (
            'backend = "onnxruntime-cuda"\nprecision = "fp16"\ncuda_graphs = false\nbuilder_level = 3',
            "builder_level: the backend onnxruntime-cuda does not read it; remove it",
        ),
        (
            'backend = "onnxruntime-cuda"\nprecision = "int8"\ncuda_graphs = false',
            "precision: onnxruntime's CUDA provider has no int8 products",
        ),
        (
            'backend = "onnxruntime-tensorrt"\nprecision = "fp16"\ncuda_graphs = false\nrefit = "any"',
            "refit: the backend onnxruntime-tensorrt does not read it",
        ),
        ("backend = ", "not valid TOML"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused_by_file_key_and_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BadRequest, match=message) as caught:
        read_target_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value).removesuffix("\n")


def test_a_missing_target_or_file_is_named_with_the_existing_ones(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"unknown target to compile for 'tensorrt-fp61'.*did you mean tensorrt-fp16"):
        find_recipe("tensorrt-fp61")
    with pytest.raises(BadRequest, match=r"none\.toml: cannot read this recipe \(No such file.*tensorrt-fp16"):
        find_recipe(tmp_path / "none.toml")
    with pytest.raises(BadRequest, match="cannot read this recipe"):
        find_recipe(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadRequest, match="not valid TOML"):
        find_recipe(tmp_path / "bytes.toml")


@pytest.mark.parametrize("name", ["cpu-int8", "Mine", "a b"])
def test_a_recipe_cannot_take_a_name_that_is_no_targets_or_another_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadRequest, match=f"'{name}' cannot name a target of a recipe.*rename the file"):
        read_target_recipe(written(tmp_path, SMALLEST, name))
