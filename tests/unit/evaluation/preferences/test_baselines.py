"""Baselines of a reward model: what they can learn, and that they never see what they are judged on."""

from __future__ import annotations

import numpy as np
import pytest

from rrm_lm.evaluation.preferences import baselines as module
from rrm_lm.evaluation.preferences.baselines import baselines, cross_fitted, fit, frozen_states, style, words
from rrm_lm.evaluation.preferences.judge import JudgeScorer
from rrm_lm.evaluation.preferences.scorers import RewardScorer, load_scorer
from rrm_lm.evaluation.statistics.metrics import cluster_index
from rrm_lm.models.backbone import Backbone
from rrm_lm.text.chat import ChatFormat
from tests.smoke.test_evaluate_command import classifier
from tests.tiny import tiny_model, tiny_reward_model, tiny_tokenizer
from tests.unit.evaluation.samples import compare, evaluate, hashed

WORDS = [
    "the",
    "answer",
    "is",
    "yes",
    "because",
    "the",
    "sea",
    "is",
    "blue",
    "and",
    "the",
    "moon",
    "is",
    "made",
    "of",
    "stone",
]


def comparisons(count: int, better, *, of: str = "question", per_prompt: int = 2, seed: int = 0):
    """Random texts; `better` changes the chosen one."""
    random = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(random.choice(WORDS, size=8))

    return [compare(f"{of} {i // per_prompt}", better(text()), text() + " also", row=i + 1) for i in range(count)]


def test_each_baseline_finds_what_it_can_see_and_nothing_else():
    found = baselines(evaluate(comparisons(160, lambda text: text.replace("sea", "tea") + " tea")))
    assert found["words"].accuracy.value > 0.95
    assert "cross-validation" in found["words"].fitted
    by_style = baselines(evaluate(comparisons(160, lambda text: "# " + text.replace(" ", "\n- ", 1) + "!")))
    assert by_style["style"].accuracy.value > 0.95
    noise = [compare(f"q {i}", hash_text(i), hash_text(-i - 1), row=i) for i in range(500)]
    nothing = baselines(evaluate(noise[:250]), noise[250:])
    for name in ("style", "words"):
        assert nothing[name].accuracy.low < 0.5 < nothing[name].accuracy.high


def hash_text(number: int) -> str:
    return " ".join(np.random.default_rng(number + 1000).choice(WORDS, size=8))


def test_length_rules_are_complements_and_leads_are_paired():
    result = evaluate(comparisons(60, lambda text: text + " and so on and on and on and on"))
    found = baselines(result)
    assert found["longer"].accuracy.value == 1.0 and found["shorter"].accuracy.value == 0.0
    assert found["longer"].lead.value == pytest.approx(result.measures.accuracy.value - 1.0)
    assert found["longer"].lead.clusters == 30
    assert found["longer"].fitted == ""


def test_a_comparison_is_never_judged_by_a_fit_on_its_own_prompt():
    """Each prompt has a word of its own that marks its chosen responses: nothing can be learned from other prompts."""
    pairs = [compare(f"q {i // 4}", f"word{i // 4} same", f"same {i}x", row=i) for i in range(80)]
    index, _ = cluster_index([c.prompt_id for c in pairs])
    assert not cross_fitted(words(pairs), index).any()
    assert (words(pairs) @ fit(words(pairs), index) > 0).all()


def test_training_comparisons_on_the_judged_prompts_are_left_out(monkeypatch):
    seen = []
    real = module.fit
    monkeypatch.setattr(module, "fit", lambda x, clusters: seen.append(x.shape[0]) or real(x, clusters))
    result = evaluate(comparisons(40, lambda text: text + " tea"))
    other = comparisons(60, lambda text: text + " tea", of="training", seed=1)
    found = baselines(result, [*other, *comparisons(40, lambda text: text)])
    assert set(seen) == {60}
    assert found["words"].fitted == "60 other comparisons"
    assert found["words"].accuracy.value > 0.95


def test_fit_does_not_depend_on_the_scale_of_a_feature_and_takes_constant_ones():
    x = np.random.default_rng(0).normal(size=(80, 3))
    x[:, 2] = 0
    x[x[:, 0] < 0] *= -1
    clusters = np.arange(80)
    plain, scaled = fit(x, clusters), fit(x * [1000.0, 1, 1], clusters)
    np.testing.assert_allclose(plain[0], scaled[0] * 1000, rtol=1e-3)
    assert np.isfinite(plain).all()


def test_style_does_not_read_words():
    one, other = compare("q", "The cat sat.", "A - b"), compare("q", "The dog ran.", "A - c")
    np.testing.assert_array_equal(style([one]), style([other]))


def test_a_set_with_one_prompt_has_only_the_length_rules():
    assert set(baselines(evaluate(comparisons(4, str.upper, per_prompt=4)))) == {"longer", "shorter"}


def reward_scorer() -> RewardScorer:
    return RewardScorer(tiny_reward_model("llama"), ChatFormat(tiny_tokenizer()))


def test_probe_reads_the_backbone_without_the_adapter(tmp_path):
    """The probe of a reward model is that of its bare backbone, whatever the batch."""
    pairs = comparisons(12, lambda text: text + " yes")
    scorer = reward_scorer()
    found = frozen_states(scorer)(pairs)
    assert found.shape == (12, 4 * 32)
    scorer.micro_batch_tokens = 1
    np.testing.assert_allclose(frozen_states(scorer)(pairs), found, atol=1e-4)
    backbone: Backbone = scorer.model.backbone
    line = scorer.chat.encode(pairs[0].prompt, [pairs[0].chosen]).lines[0][0]
    other = scorer.chat.encode(pairs[0].prompt, [pairs[0].rejected]).lines[0][0]
    import torch

    expected = []
    with torch.no_grad(), backbone.using(None):
        for one in (line, other):
            states = backbone.decoder(torch.tensor([one.ids]), output_hidden_states=True).hidden_states
            own = [states[layer][0, one.response_start :][: one.reward_at + 1 - one.response_start] for layer in (1, 2)]
            expected.append(torch.cat([part for rows in own for part in (rows[-1], rows.mean(0))]))
    np.testing.assert_allclose(found[0], (expected[0] - expected[1]).numpy(), atol=1e-4)


def test_probe_of_a_classifier_and_of_a_judge(tmp_path):
    pairs = comparisons(6, lambda text: text + " yes")
    model = load_scorer(str(classifier(tmp_path / "classifier")), dtype="float32")
    tokenizer = tiny_tokenizer()
    judge = JudgeScorer(Backbone(tiny_model("llama"), 0), ChatFormat(tokenizer), "judge")
    for scorer in (model, judge):
        assert frozen_states(scorer)(pairs).shape == (6, 4 * 32)  # type: ignore[arg-type]


def test_results_have_baselines_only_if_they_were_asked_for():
    from dataclasses import replace

    result = evaluate(comparisons(20, lambda text: text + " tea"), hashed)
    assert "baselines" not in result.to_dict()
    found = replace(result, baselines=baselines(result)).to_dict()["baselines"]
    assert set(found) == {"longer", "shorter", "style", "words"}  # type: ignore[call-overload]
    assert set(found["words"]) == {"accuracy", "model_minus", "fitted"}  # type: ignore[index]
