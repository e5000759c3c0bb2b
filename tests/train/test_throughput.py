import pytest

from budgetlm.model.size import flops_per_token
from budgetlm.train.throughput import SpeedModel, SpeedPoint, Work
from tests.conftest import tiny_model

TRUE = SpeedModel(Work(3e-11, 2e-8, 5e-9, 2e-8, 2e-3, 1e-3, 4e-9, 2e-9, 3e-11, 3e-4))


def point(depth, width, batch=1024, micro=1024, optimizer="adamw"):
    model = tiny_model(depth=depth, width=width, context_length=64)
    return SpeedPoint(model, batch, micro, optimizer, TRUE.tokens_per_second(model, batch, micro, optimizer))


def test_prices_fitted_to_a_few_shapes_predict_others():
    known = [
        point(1, 32),
        point(2, 128),
        point(6, 128),
        point(4, 256),
        point(4, 256, optimizer="muon"),
        point(2, 64, 256, 256),
    ]
    fitted = SpeedModel.fit(known, ceiling_gflops=40)
    for new in (point(3, 96), point(8, 192), point(2, 256, 4096, 1024), point(5, 160, 512, 512, "muon")):
        predicted = fitted.tokens_per_second(new.model, new.batch_tokens, new.micro_batch_tokens, new.optimizer)
        assert predicted == pytest.approx(new.tokens_per_second, rel=0.15)


def test_without_measurements_the_ceiling_gives_a_sensible_guess():
    guess = SpeedModel.fit([], ceiling_gflops=100)
    small, large = (
        guess.tokens_per_second(tiny_model(depth=d, width=w), 1024, 1024, "adamw") for d, w in ((1, 32), (8, 256))
    )
    assert small > 5 * large > 0


def test_no_shape_is_believed_to_pass_the_ceiling():
    model = tiny_model(depth=4, width=256)
    absurd = SpeedModel.fit([SpeedPoint(model, 1024, 1024, "adamw", 1e9)] * 9, ceiling_gflops=50)
    assert absurd.tokens_per_second(model, 1024, 1024, "adamw") * flops_per_token(model) <= 50e9 * 1.0001


def test_a_checkpointed_run_pays_for_a_second_forward_pass_of_its_blocks():
    model = tiny_model(depth=12, width=256, vocab_size=16)
    products = SpeedModel(Work(3e-11, *[0.0] * 9))
    for speeds, dearer in ((products, 4 / 3), (TRUE, 1.44)):
        plain = speeds.tokens_per_second(model, 4096, 4096, "adamw")
        again = speeds.tokens_per_second(model, 4096, 4096, "adamw", checkpoint_activations=True)
        assert plain / again == pytest.approx(dearer, rel=0.03)


def test_muon_takes_its_time_of_small_steps():
    model = tiny_model(depth=6, width=32)
    shares = [
        TRUE.tokens_per_second(model, batch, batch, "muon") / TRUE.tokens_per_second(model, batch, batch, "adamw")
        for batch in (128, 1024, 16384)
    ]
    assert shares[0] < 0.8 * shares[1] < 0.8 * shares[2]
