"""Labels of an adapter's CTC head, as a card's configuration has them."""

import pytest

import gin
from slm_jax.data import vocabularies

TEXT = ','.join(f'{token}:{token % 7}' for token in range(2, 3000, 13))


def test_labels_are_one_line_of_gin_and_come_back_from_a_card():
    gin.clear_config()
    gin.parse_config(
        f"""
        LABELS = '{TEXT}'
        counted_tokens.labels = %LABELS
        label_counts.labels = %LABELS
        """
    )
    card = gin.config_str()
    gin.clear_config()
    gin.parse_config(card)
    assert f"LABELS = \\\n    '{TEXT}'" in card
    assert vocabularies.counted_tokens() == (-1, *range(2, 3000, 13))
    assert vocabularies.label_counts() == tuple(token % 7 for token in range(2, 3000, 13))
    gin.clear_config()


@pytest.mark.parametrize('text', ['', '5', '5:', '5:1,', '1:3', '0:3', '5:-1', '-5:1', '5:1;6:1', '5:1 6:1', '5:1.5'])
def test_what_is_no_label_is_named(text):
    for read in (vocabularies.counted_tokens, vocabularies.label_counts):
        with pytest.raises(ValueError, match='LABELS: .* is no TOKEN:COUNT.*Write the file again with `python -m'):
            read(text)


def test_a_token_has_one_count():
    with pytest.raises(ValueError, match='LABELS has the token 6 twice. Write the file again'):
        vocabularies.counted_tokens('5:1,6:2,6:3')
