from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "gpu/models/fixtures"
FORMATS = ROOT / "gpu/formats/fixtures"
