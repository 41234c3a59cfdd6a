"""The CSV of predict has the columns that DESIGN promises, and the numbers that the model gave."""

import csv
import io

import numpy as np

from bloodcell.commands import predict


def test_columns_and_values_are_as_documented():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.3, 0.3, 0.4]], np.float32)
    rows = list(csv.reader(io.StringIO(predict.to_csv(["a,b.png", "c.png"], probabilities, ["x", "y", "z"]))))
    assert rows[0] == ["file", "label", "name", "p0", "p1", "p2", "confidence", "novelty", "flag"]
    assert rows[1][:3] == ["a,b.png", "0", "x"]
    assert rows[2][:3] == ["c.png", "2", "z"]
    np.testing.assert_allclose(np.array([row[3:6] for row in rows[1:]], float), probabilities, atol=1e-6)
    assert [row[6] for row in rows[1:]] == ["0.900000", "0.400000"]
    assert [row[8] for row in rows[1:]] == ["", "low_confidence"]
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1)) / np.log(3)
    assert abs(float(rows[1][7]) - entropy) < 1e-5
