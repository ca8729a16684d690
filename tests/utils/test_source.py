"""The digest of code covers everything that is imported, and nothing else."""

from utils import source


def test_digest_follows_imports_and_notices_each_change(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    files = {
        "models/net.py": "import torch\n",
        "utils/run.py": "from utils import direct\n\ndef main():\n    from utils.sub.lazy import thing\n",
        "utils/direct.py": "import utils.indirect as other\n",
        "utils/indirect.py": "",
        "utils/sub/lazy.py": "thing = 1\n",
        "utils/unrelated.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def digest():
        source.code_files.cache_clear()
        source.code_digest.cache_clear()
        return source.code_digest("utils/run.py", "models/*.py")

    first = digest()
    for name in files:
        (tmp_path / name).write_text(files[name] + "# changed\n")
        assert (digest() != first) == (name != "utils/unrelated.py"), name
        (tmp_path / name).write_text(files[name])
    (tmp_path / "models" / "second.py").write_text("")
    assert digest() != first, "models are found by a pattern"


def test_cells_of_attacks_depend_on_methods_augmentation_and_checkpoints_but_not_on_scripts():
    from utils.attacks.runs import CELL_CODE

    names = {str(file.relative_to(source.ROOT)) for file in source.code_files(*CELL_CODE)}
    assert {"utils/attacks/methods/fgsm.py", "datasets/perturbations.py", "utils/checkpoints/file.py"} <= names
    assert not {name for name in names if "/" not in name or name.startswith("studies/")}
