"""The examples in C++: each is built where its library is found, and left out cleanly where it is not."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gwsss_fast.export.runtimes import open_runtime, prepare
from tests.export.networks import description, exported, nano

EXAMPLES = Path(__file__).resolve().parents[2] / "csrc" / "examples"


def test_without_their_libraries_the_examples_are_left_out(tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None or shutil.which("c++") is None:
        pytest.skip("no cmake or C++ compiler")
    none = ("-DCMAKE_DISABLE_FIND_PACKAGE_gwsss_fast=ON", "-DONNXRUNTIME_LIBRARY=0", "-DTENSORRT_LIBRARY=0")
    command = [cmake, "-S", str(EXAMPLES), "-B", str(tmp_path), *none]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("crf", "segment_onnx", "segment_engine"):
        assert len(re.findall(rf"^-- {name} is left out: ", done.stdout, re.MULTILINE)) == 1
    done = subprocess.run([cmake, "--build", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_with_onnx_runtime_writes_the_mask_of_python(tmp_path: Path) -> None:
    """Where CMake finds the library; CMAKE_INCLUDE_PATH and CMAKE_LIBRARY_PATH may say where it lies."""
    cmake = shutil.which("cmake") or pytest.skip("no cmake")
    command = [cmake, "-S", EXAMPLES, "-B", tmp_path / "build"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode or "segment_onnx is left out" in found.stdout:
        pytest.skip("CMake finds no ONNX Runtime for C++")
    subprocess.run([cmake, "--build", tmp_path / "build", "--target", "segment_onnx"], check=True, capture_output=True)
    inside = description(nano(), normalise=True, argmax=True)
    file = exported(nano(), inside, tmp_path / "model.onnx")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8))
    image.save(tmp_path / "image.ppm")
    program, mask = tmp_path / "build" / "segment_onnx", tmp_path / "mask.pgm"
    subprocess.run([program, file.path, tmp_path / "image.ppm", mask], check=True)
    wanted = open_runtime(file.path, "cpu")(prepare(image, inside))[0].numpy()
    assert len(np.unique(wanted)) > 1
    assert np.array_equal(np.asarray(Image.open(mask)), wanted)


def test_pictures_and_masks_are_read_and_written(tmp_path: Path) -> None:
    """The shared header by itself, with a comment in the picture's head and pictures that are none."""
    (tmp_path / "main.cpp").write_text(
        '#include "portable_map.h"\n'
        "#include <cstdio>\n"
        "int main(int, char** arguments) try {\n"
        "  const Picture picture = read_picture(arguments[1]);\n"
        "  std::vector<int64_t> labels;\n"
        "  for (int64_t i = 0; i < picture.height * picture.width; ++i)\n"
        "    labels.push_back(static_cast<int64_t>(picture.planes[2 * picture.height * picture.width + i]));\n"
        "  write_mask(arguments[2], labels.data(), picture.height, picture.width);\n"
        "} catch (const std::exception& error) { std::puts(error.what()); return 1; }\n"
    )
    compiler = shutil.which("c++") or pytest.skip("no C++ compiler")
    program = tmp_path / "main"
    subprocess.run([compiler, "-std=c++17", "-I", EXAMPLES, tmp_path / "main.cpp", "-o", program], check=True)
    pixels = bytes(range(3 * 6))
    (tmp_path / "good.ppm").write_bytes(b"P6\n# a comment\n3 2\n255\n" + pixels)
    subprocess.run([program, tmp_path / "good.ppm", tmp_path / "mask.pgm"], check=True)
    assert (tmp_path / "mask.pgm").read_bytes() == b"P5\n3 2\n255\n" + pixels[2::3]
    for content, words in ((b"P5\n3 2\n255\n", "no portable pixmap"), (b"P6\n3 2\n255\nab", "ends too early")):
        (tmp_path / "bad.ppm").write_bytes(content)
        done = subprocess.run(
            [program, tmp_path / "bad.ppm", tmp_path / "x"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert words in done.stdout
