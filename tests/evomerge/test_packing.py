import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.errors import JournalError
from evomerge.packing import pack, unpack


@given(
    hnp.arrays(
        np.float64,
        st.integers(0, 40),
        elements=st.one_of(
            st.sampled_from([0.0, 1.0, -0.0, 0.5, 1e300]),
            st.floats(allow_nan=False, allow_infinity=False),
        ),
    )
)
def test_what_is_packed_comes_back_bit_for_bit(values):
    assert unpack(pack(values)).tobytes() == values.tobytes()


def test_right_and_wrong_take_a_bit_each():
    answers = np.random.default_rng(0).integers(0, 2, 500).astype(float)
    assert len(pack(answers)) < 100


@pytest.mark.parametrize(
    "text", ["", "bits", "bits:x:", "f4:3:AAAA", "f2:1:AAA=", "f8:1:\N{SNOWMAN}"]
)
def test_other_text_is_refused_in_a_sentence(text):
    with pytest.raises(JournalError, match="packed numbers"):
        unpack(text)
