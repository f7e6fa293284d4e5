"""A model of arrays, without documents or an encoder. It classifies windows of three sensors: the machine runs, wobbles or stands.

python sensor_windows.py                                                    # draws windows.npz, trains, writes sensor_windows.pt
ee-export build sensor_windows.py:make_model windows.npz --out sensors.ee   # cuts, proves, calibrates and tunes
"""

import numpy as np
import torch
from torch import nn

from ee_export.export import Input, Part, PartedModel

LABELS = ("running", "standing", "wobbling")
STEPS, SENSORS = 64, 3
DATA, WEIGHTS = "windows.npz", "sensor_windows.pt"


def draw(windows, seed):
    """Windows of noise, with a tone if the machine runs or wobbles, as arrays that `ee-export build` reads."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, len(LABELS), windows)
    pitch = np.choose(label, [rng.uniform(8, 9, windows), np.zeros(windows), rng.uniform(3, 4, windows)])
    time = np.linspace(0, 2 * np.pi, STEPS)[:, None] + rng.uniform(0, 6, (windows, 1, SENSORS))
    signal = np.sin(pitch[:, None, None] * time) * (label != 1)[:, None, None] + rng.normal(0, 0.7, time.shape)
    return {"signal": signal.astype(np.float32), "label": np.array(LABELS)[label]}


class SensorNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.near = nn.Sequential(nn.Conv1d(SENSORS, 16, 7, 2, 3), nn.ReLU())
        self.far = nn.Sequential(nn.Conv1d(16, 32, 7, 2, 3), nn.ReLU(), nn.Conv1d(32, 64, 7, 2, 3), nn.ReLU())
        self.heads = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(4 * width, len(LABELS)))
            for width in (16, 64)
        )

    def first(self, signal):
        return self.near(signal.transpose(1, 2))

    def forward(self, signal):
        x = self.first(signal)
        return {"near": self.heads[0](x), "far": self.heads[1](self.far(x))}


def train(windows=600, epochs=15):
    np.savez(DATA, **draw(windows, seed=1))
    made = draw(windows, seed=2)
    signal, targets = torch.from_numpy(made["signal"]), torch.tensor([LABELS.index(label) for label in made["label"]])
    torch.manual_seed(0)
    net = SensorNet().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(targets)).split(32):
            loss = sum(nn.functional.cross_entropy(each, targets[rows]) for each in net(signal[rows]).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save(net.state_dict(), WEIGHTS)


def make_model():
    net = SensorNet().eval()
    net.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return PartedModel(
        parts=[
            Part(("signal",), ("state",), net.first),
            Part(("state",), ("near.logits",), net.heads[0]),
            Part(("state",), ("far.logits",), nn.Sequential(net.far, net.heads[1])),
        ],
        exits=["near", "far"],
        labels=LABELS,
        module=net,
        inputs={"signal": Input("array", "float32", ("B", STEPS, SENSORS))},
        reference=net,
    )


if __name__ == "__main__":
    train()
