"""Networks that people bring: each kind of layer becomes sparse with its function, or stays dense and is named."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from truly_sparse import (
    Attention,
    DynamicSparsity,
    InvalidArgumentError,
    SparseConv1d,
    SparseLinear,
    densify,
    layer_nnz,
    register_adapter,
    sparse_init,
    sparse_layers,
    sparsify,
)
from truly_sparse.adapters import ADAPTERS
from truly_sparse.report import sparsity_by_layer
from tutorial_lib import mask_model, multiply_adds, sparsity_report


class Recurrent(nn.Module):
    """An LSTM holds most weights; one matrix belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.words, self.lstm, self.head = nn.Embedding(50, 20), nn.LSTM(20, 32, batch_first=True), nn.Linear(32, 5)
        self.position = nn.Parameter(torch.zeros(1, 7, 20))

    def forward(self, tokens):
        return self.head(self.lstm(self.words(tokens) + self.position)[0][:, -1])


class LanguageModel(nn.Module):
    """The head shares its weight with the embedding, as in GPT-2 and BERT."""

    def __init__(self):
        super().__init__()
        self.words, self.hidden, self.head = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 50)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        return self.head(self.hidden(self.words(tokens)))


class Transposed(nn.Module):
    """Like transformers' Conv1D: a linear layer whose weight is ``(in, out)``."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


def to_linear(layer):
    linear = nn.Linear(*layer.weight.shape)
    linear.weight, linear.bias = nn.Parameter(layer.weight.detach().T.clone()), copy.deepcopy(layer.bias)
    return linear


@pytest.fixture
def transposed_is_known():
    register_adapter(Transposed, to_linear)
    yield
    del ADAPTERS[Transposed]


def conv1d_net():
    convolutions = [nn.Conv1d(4, 8, 3, padding=1, stride=2), nn.ReLU(), nn.Conv1d(8, 8, 5, dilation=2, groups=2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8 * 8, 6))


def attention_net():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(8 * 5, 6))


def decoder(layers=2):
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True), layers)


# ------------------------------------------------------------------------------------------ the same function


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "geometry",
    [{}, {"stride": 2, "padding": 3}, {"dilation": 2, "padding": 1}, {"groups": 2}, {"groups": 6, "stride": 3}],
    ids=str,
)
def test_a_sparse_conv1d_computes_what_the_masked_one_does(geometry, bias):
    torch.manual_seed(0)
    masked = mask_model(nn.Conv1d(6, 12, 3, bias=bias, **geometry), 0.6)
    sparse = sparsify(masked)
    assert type(sparse) is SparseConv1d and sparse.dense_shape == masked.dense_shape
    assert torch.equal(sparse.active(), masked.active()) and torch.equal(sparse.active_values(), masked.active_values())
    assert repr(densify(sparse)) == repr(densify(masked))
    x = torch.randn(5, 6, 16)
    outcomes = []
    for layer in (masked, sparse, densify(sparse)):
        y = layer(inner := x.clone().requires_grad_())
        y.square().sum().backward()
        outcomes.append((y, layer(x[0]), inner.grad))
    for other in outcomes[1:]:
        torch.testing.assert_close(other, outcomes[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sparse.values.grad, masked.weight.grad[masked.mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [torch.zeros(4), torch.zeros(1, 1, 4, 4), None, torch.zeros(2, 3, 4)])
def test_a_conv1d_refuses_other_inputs(wrong):
    with pytest.raises(InvalidArgumentError):
        SparseConv1d(2, 4, 3)(wrong)


@pytest.mark.parametrize("padding", [{"padding_mode": "circular", "padding": 1}, {"padding": "same"}], ids=str)
def test_a_padding_that_no_sparse_convolution_has(padding):
    with pytest.raises(InvalidArgumentError, match="SparseConv1d does not support the padding"):
        sparsify(nn.Conv1d(2, 4, 3, **padding), 0.5)


MASKS = {
    "none": {},
    "causal": {"attn_mask": torch.ones(5, 5).triu(1).bool()},
    "hint": {"attn_mask": torch.ones(5, 5).triu(1).bool(), "is_causal": True},
    "numbers": {"attn_mask": torch.linspace(-1, 1, 25).view(5, 5)},
    "per head": {"attn_mask": torch.linspace(-1, 1, 3 * 4 * 25).view(12, 5, 5)},
    "padding": {"key_padding_mask": torch.arange(5).expand(3, 5) >= torch.tensor([[5], [3], [1]])},
    "both": {
        "attn_mask": torch.ones(5, 5).triu(1).bool(),
        "key_padding_mask": torch.arange(5).expand(3, 5) >= torch.tensor([[5], [3], [1]]),
    },
}


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize(("batch_first", "bias", "need_weights"), list(itertools.product([True, False], repeat=3)))
def test_attention_computes_what_torchs_does(masks, batch_first, bias, need_weights):
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(16, 4, bias=bias, batch_first=batch_first)
    ours, x = Attention(dense), torch.randn(3, 5, 16) if batch_first else torch.randn(5, 3, 16)
    for average in (True, False):
        options = MASKS[masks] | {"need_weights": need_weights, "average_attn_weights": average}
        torch.testing.assert_close(ours(x, x, x, **options), dense(x, x, x, **options))
    ours(x, x, x, **MASKS[masks])[0].square().sum().backward()
    dense(x, x, x, **MASKS[masks])[0].square().sum().backward()
    parts = [ours.q_proj.weight.grad, ours.k_proj.weight.grad, ours.v_proj.weight.grad]
    torch.testing.assert_close(torch.cat(parts), dense.in_proj_weight.grad)
    torch.testing.assert_close(ours.out_proj.weight.grad, dense.out_proj.weight.grad)


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_over_other_sizes_and_without_a_batch(need_weights):
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(16, 4, kdim=6, vdim=10)
    query, key, value = torch.randn(3, 16), torch.randn(7, 6), torch.randn(7, 10)
    options = {"need_weights": need_weights, "key_padding_mask": torch.arange(7) > 4}
    torch.testing.assert_close(Attention(dense)(query, key, value, **options), dense(query, key, value, **options))


def test_dropout_of_attention_is_only_for_training():
    torch.manual_seed(0)
    dense, x = nn.MultiheadAttention(16, 4, dropout=0.5), torch.randn(5, 3, 16)
    ours = Attention(dense)
    for need_weights in (True, False):
        one, other = (ours(x, x, x, need_weights=need_weights)[0] for _ in range(2))
        assert not torch.equal(one, other)
        expected = dense.eval()(x, x, x)[0]
        torch.testing.assert_close(ours.eval()(x, x, x, need_weights=need_weights)[0], expected)
        ours.train(), dense.train()


@pytest.mark.parametrize("more", [{"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
def test_attention_with_additional_keys_stays_dense(more, capsys):
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, **more), "head": nn.Linear(8, 8)})
    assert list(sparse_layers(mask_model(model, 0.5))) == ["head"]
    assert "attention (MultiheadAttention)" in capsys.readouterr().err
    with pytest.raises(InvalidArgumentError, match="bias_k or add_zero_attn"):
        Attention(model["attention"])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_an_encoder_in_training_evaluation_and_its_fast_path(training, norm_first, padded):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    dense = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).train(training)
    whole, masked = mask_model(dense, 0.0), mask_model(dense, 0.7)
    x, padding = torch.randn(3, 6, 16), torch.arange(6) >= torch.tensor([[6], [4], [2]])
    options = {"src_key_padding_mask": padding} if padded else {}
    real = ~padding if padded else slice(None)  # torch's fast path gives zeros at padded places
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(whole(x, **options)[real], dense(x, **options)[real], rtol=1e-4, atol=1e-5)
            sparse = sparsify(masked)(x, **options)
            torch.testing.assert_close(sparse[real], masked(x, **options)[real], rtol=1e-4, atol=1e-5)
    assert len(sparse_layers(masked)) == 2 * 6 and sparsity_report(masked).loc["total", "sparsity"] > 0.69


@pytest.mark.parametrize("training", [True, False])
def test_a_decoder_in_training_and_evaluation(training):
    torch.manual_seed(0)
    dense = decoder().train(training)
    masked = mask_model(dense, 0.7)
    assert len(sparse_layers(masked)) == 2 * 10
    x, memory, causal = torch.randn(3, 6, 16), torch.randn(3, 4, 16), nn.Transformer.generate_square_subsequent_mask(6)
    expected = dense(x, memory, tgt_mask=causal)
    torch.testing.assert_close(mask_model(dense, 0.0)(x, memory, tgt_mask=causal), expected, rtol=1e-4, atol=1e-5)
    ours, theirs = (model(x, memory, tgt_mask=causal) for model in (sparsify(masked), masked))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grow", ["random", "gradient", "sampled gradient", "momentum"])
@pytest.mark.parametrize(("build", "shape"), [(conv1d_net, (16, 4, 31)), (attention_net, (16, 5, 8))])
def test_masked_and_truly_sparse_walk_through_the_same_topologies(build, shape, grow):
    torch.manual_seed(0)
    masked = sparse_init(mask_model(build(), 0.7))
    models = [masked, sparsify(masked)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in models]
    drivers = [
        DynamicSparsity(model, optimizer, prune_fraction=0.3, every=2, grow=grow)
        for model, optimizer in zip(models, optimizers, strict=True)
    ]
    first = [layer.active() for layer in sparse_layers(masked).values()]
    for _ in range(6):
        x, y = torch.randn(shape), torch.randint(6, shape[:1])
        for model, optimizer, driver in zip(models, optimizers, drivers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            driver.step()
        for one, other in zip(*(sparse_layers(model).values() for model in models), strict=True):
            assert torch.equal(one.active(), other.active())
            torch.testing.assert_close(one.active_values(), other.active_values(), rtol=1e-3, atol=1e-5)
    assert not any(map(torch.equal, first, (layer.active() for layer in sparse_layers(masked).values())))


# ------------------------------------------------------------------------------------------ what stays dense


@pytest.mark.parametrize("convert", [mask_model, sparsify])
def test_what_stays_dense_is_named_in_one_line_and_counted(convert, capsys):
    model = convert(Recurrent(), 0.9)
    weights = sum(parameter.numel() for parameter in Recurrent().parameters() if parameter.dim() > 1)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and f"{weights - 160:,} of {weights:,} weights stay dense: " in line
    for named in ("words (Embedding)", "lstm (LSTM)", "position (Parameter)"):
        assert named in line
    report = sparsity_report(model)
    assert report.loc["total", ["weights", "active"]].tolist() == [weights, weights - 160 + 16]
    assert report["weights"].drop("total").sum() == weights
    assert report.loc["lstm.weight_hh_l0", ["shape", "sparsity"]].tolist() == ["128×32", 0.0]
    assert {"words", "head", "position"} < set(report.index)
    assert model(torch.zeros(2, 7, dtype=torch.int64)).shape == (2, 5)


def test_a_long_list_is_cut(capsys):
    mask_model(nn.ModuleList([nn.Linear(4, 4), *(nn.Embedding(4, 4) for _ in range(9))]), 0.5)
    line = capsys.readouterr().err
    assert line.count("Embedding") == 6 and "and 3 more, see sparsity_report" in line


@pytest.mark.parametrize(
    "options",
    [{"include": ["head"]}, {"include": [nn.Linear]}, {"include": ["h*"], "exclude": [nn.LSTM]}],
    ids=str,
)
def test_what_was_not_wanted_is_not_named(options, capsys):
    assert list(sparse_layers(mask_model(Recurrent(), 0.9, **options))) == ["head"]
    mask_model(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)), 0.5)
    assert capsys.readouterr().err == ""
    mask_model(Recurrent(), 0.9, exclude=[nn.LSTM, "words"])
    assert "140 of 7,956 weights stay dense: position (Parameter)" in capsys.readouterr().err


def test_report_of_a_dense_model_counts_attention():
    rows = sparsity_by_layer(nn.MultiheadAttention(8, 2))
    assert {name: row.weights for name, row in rows.items()} == {"in_proj_weight": 192, "out_proj": 64, "total": 256}
    with pytest.raises(InvalidArgumentError, match="has no weights"):
        sparsity_by_layer(nn.ReLU())


@pytest.mark.parametrize("convert", [mask_model, sparsify])
def test_a_head_that_is_also_the_embedding_stays_dense(convert, capsys):
    model = convert(LanguageModel(), 0.5)
    assert list(sparse_layers(model)) == ["hidden"] and model.head.weight is model.words.weight
    line = capsys.readouterr().err
    assert "head (Linear, shares its weight with 'words')" in line and "800 of 1,056 weights" in line
    assert sparsity_report(model).loc["total", "weights"] == 50 * 16 + 16 * 16  # once
    assert model(torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 3, 50)


@pytest.mark.parametrize("convert", [mask_model, sparsify])
def test_layers_that_share_a_weight_among_themselves(convert):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(InvalidArgumentError, match=r"'0\.weight' and '1\.weight' are the same parameter"):
        convert(model, 0.5)
    with pytest.raises(InvalidArgumentError, match="are the same parameter"):
        convert(model, 0.5, exclude=["0"])  # the tie would be cut
    assert list(sparse_layers(convert(model, 0.5, exclude=["0", "1"]))) == ["2"]


def test_a_model_in_which_everything_is_shared():
    with pytest.raises(InvalidArgumentError, match="share their weights"):
        mask_model(LanguageModel(), 0.5, include=["head"])


# ------------------------------------------------------------------------------------------ which layers


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"exclude": [nn.MultiheadAttention]}, ["0.linear1", "0.linear2", "2"]),
        ({"exclude": ["*.self_attn"]}, ["0.linear1", "0.linear2", "2"]),
        ({"include": [nn.MultiheadAttention]}, [f"0.self_attn.{part}_proj" for part in ("q", "k", "v", "out")]),
        ({"include": ["*.q_proj"]}, ["0.self_attn.q_proj"]),
        ({"exclude": [nn.TransformerEncoderLayer]}, ["2"]),
        ({"include": ["0"], "exclude": ["*_proj"]}, ["0.linear1", "0.linear2"]),
        ({"include": [nn.Linear], "exclude": ["2", nn.MultiheadAttention]}, ["0.linear1", "0.linear2"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("convert", [mask_model, sparsify])
def test_layers_are_chosen_by_name_or_class_or_by_what_contains_them(convert, options, names):
    model = attention_net()
    converted = convert(model, 0.5, **options)
    assert set(sparse_layers(converted)) == set(names) == set(layer_nnz(model, 0.5, **options))
    attention = [module for module in converted.modules() if isinstance(module, nn.MultiheadAttention)]
    assert len(attention) == (not any("proj" in name for name in names))  # left as it is if nothing of it is chosen
    assert set(sparse_layers(sparsify(mask_model(model, 0.5), **options))) >= set(names)


@pytest.mark.parametrize("wrong", [[3], nn.Linear, [int], "fc*", [nn.Linear(2, 2)]])
def test_what_cannot_name_a_layer(wrong):
    with pytest.raises((InvalidArgumentError, TypeError), match=r"name patterns or classes|not iterable"):
        mask_model(attention_net(), 0.5, exclude=wrong)


# ------------------------------------------------------------------------------------------ layers of others


@pytest.mark.parametrize("convert", [mask_model, sparsify])
def test_a_kind_of_layer_becomes_known_by_an_adapter(convert, transposed_is_known, capsys):
    torch.manual_seed(0)
    model, x = nn.Sequential(Transposed(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 6)
    model[0].weight.requires_grad_(False)
    torch.testing.assert_close(convert(model, 0.0)(x), model(x))
    assert layer_nnz(model, 0.5) == {"0": 24, "2": 12} and capsys.readouterr().err == ""
    assert list(sparse_layers(convert(model, 0.5, exclude=[Transposed]))) == ["2"]
    assert list(sparse_layers(convert(model, 0.5, include=[Transposed]))) == ["0"]


def test_without_an_adapter_it_is_dense_and_named(capsys):
    mask_model(nn.Sequential(Transposed(6, 8), nn.Linear(8, 3)), 0.5)
    assert "48 of 72 weights stay dense: 0 (Transposed)" in capsys.readouterr().err


def test_an_adapter_is_for_its_class_only(transposed_is_known):
    class Doubled(Transposed):
        def forward(self, x):
            return 2 * super().forward(x)

    assert list(layer_nnz(nn.Sequential(Doubled(6, 8), nn.Linear(8, 3)), 0.5)) == ["1"]


def test_an_adapter_must_return_a_module(transposed_is_known):
    register_adapter(Transposed, lambda layer: layer.weight)
    with pytest.raises(InvalidArgumentError, match="the adapter of '0' returned Parameter"):
        mask_model(nn.Sequential(Transposed(6, 8)), 0.5)


def test_an_adapted_model_shares_nothing_and_the_model_is_not_changed():
    model = attention_net()
    before = copy.deepcopy(model.state_dict())
    masked = mask_model(model, 0.5, include=["0"])
    with torch.no_grad():
        for tensor in masked.parameters():
            tensor.fill_(7)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in masked.parameters()}


# ------------------------------------------------------------------------------------------ and back


class Encoder(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=batch_first)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("convert", [mask_model, sparsify])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_densify_gives_back_the_network_that_was_converted(batch_first, training, convert):
    torch.manual_seed(0)
    model, x = Encoder(batch_first).train(training), torch.randn(3, 5, 16)
    sparse = convert(model, 0.5)
    dense = densify(sparse)
    torch.testing.assert_close(dense(x), sparse(x), rtol=1e-4, atol=1e-5)
    assert repr(dense) == repr(model)
    assert not any(type(module).__module__.startswith("truly_sparse") for module in dense.modules())
    again = Encoder(batch_first).train(training)
    again.load_state_dict(dense.state_dict())
    torch.testing.assert_close(again(x), sparse(x), rtol=1e-4, atol=1e-5)
    assert not {p.data_ptr() for p in sparse.parameters()} & {p.data_ptr() for p in dense.parameters()}
    assert list(sparse_layers(sparsify(dense, 0.5))) == list(sparse_layers(sparse))


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 6, "vdim": 10}, {"kdim": 6, "bias": False}], ids=str)
def test_densify_gives_back_each_kind_of_attention(options):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(16, 4, dropout=0.1, **options).eval()
    for parameter in model.out_proj.parameters():
        parameter.requires_grad_(False)
    dense = densify(sparsify(model, 0.0))
    assert type(dense) is nn.MultiheadAttention and not dense.training and dense.dropout == 0.1
    assert dense.state_dict().keys() == model.state_dict().keys()
    assert all(map(torch.equal, dense.state_dict().values(), model.state_dict().values()))
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in dense.named_parameters()} == trained
    query, key, value = torch.randn(3, 2, 16), torch.randn(7, 2, model.kdim), torch.randn(7, 2, model.vdim)
    torch.testing.assert_close(dense(query, key, value), model(query, key, value))


def test_densify_leaves_what_another_adapter_put_in(transposed_is_known):
    model, x = nn.Sequential(Transposed(6, 8), nn.Linear(8, 3)), torch.randn(4, 6)
    dense = densify(sparsify(model, 0.0))
    assert type(dense[0]) is nn.Linear
    torch.testing.assert_close(dense(x), model(x))


# ------------------------------------------------------------------------------------------ taken over


def pruned():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 10), nn.Linear(10, 5))
    prune.l1_unstructured(model[0], "weight", 0.8)
    prune.ln_structured(model[2], "weight", 0.5, n=2, dim=0)
    prune.random_unstructured(model[2], "weight", 0.2)
    prune.random_unstructured(model[2], "bias", 0.5)
    return model


@pytest.mark.parametrize("convert", [mask_model, sparsify])
@pytest.mark.parametrize("topology", ["random", "magnitude"])
def test_masks_of_torchs_pruning_are_taken_over(convert, topology):
    model, x = pruned(), torch.randn(4, 20)
    with torch.no_grad():  # weights move after the last call, as an optimizer moves them
        for parameter in model.parameters():
            parameter += 0.1
    masks = {name: model[name].weight_mask.flatten().nonzero().flatten() for name in (0, 2)}
    expected = model(x)
    converted = convert(model, 0.4, topology=topology)
    for name, places in masks.items():
        assert torch.equal(converted[name].active(), places)
    assert len(converted[3].active()) == 30 and layer_nnz(model, 0.4) == {"0": 40, "2": 40, "3": 30}
    whole = convert(model, 0.0)
    torch.testing.assert_close(whole(x), expected)
    assert not whole[0]._forward_pre_hooks and torch.is_tensor(model[0].weight_orig)


@pytest.mark.parametrize("convert", [lambda model: mask_model(model, None), sparsify])
def test_zeros_made_permanent_are_the_topology_on_request(convert):
    model = pruned()
    expected = {name: model[name].weight_mask.bool() for name in (0, 2)}
    for name in (0, 2):
        prune.remove(model[name], "weight")
    converted = convert(model)
    for name, mask in expected.items():
        assert torch.equal(converted[name].active(), mask.flatten().nonzero().flatten())
    x = torch.randn(4, 20)
    torch.testing.assert_close(converted(x), model(x))


WEIGHT_NORM = [parametrizations.weight_norm, nn.utils.weight_norm]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", WEIGHT_NORM, ids=["parametrization", "hook"])
@pytest.mark.parametrize("convert", [mask_model, sparsify])
def test_weight_norm_is_taken_over_with_the_weight_of_now(norm, convert):
    torch.manual_seed(0)
    layers = nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3)
    model, x = nn.Sequential(norm(layers[0]), layers[1], norm(layers[2]), norm(layers[3])), torch.randn(4, 3, 6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.5
        whole = convert(model, 0.0, exclude=["3"])
        torch.testing.assert_close(whole(x), model(x))
        torch.testing.assert_close(
            convert(model, 0.5, topology="magnitude")[2].active_values().abs().sum().item(),
            model[2].weight.flatten().abs().topk(64).values.sum().item(),
        )
    assert [layer.weight_parameter.requires_grad for layer in sparse_layers(whole).values()] == [True, True]


def test_a_weight_that_is_computed_in_another_way_stays_dense(capsys):
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 6)), nn.Linear(6, 6))
    assert list(sparse_layers(mask_model(model, 0.5))) == ["1"]
    assert "36 of 72 weights stay dense" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ from a dense checkpoint


@pytest.mark.parametrize("scheme", ["uniform", "erk"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_largest_weights_of_each_layer(scheme, layout):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 10)).to(memory_format=layout)
    masked = mask_model(model, 0.7, scheme, topology="magnitude")
    sparse = sparsify(model, 0.7, scheme, topology="magnitude")
    for name, count in layer_nnz(model, 0.7, scheme).items():
        weight = model.get_submodule(name).weight.detach().flatten()
        best = weight.abs().topk(count).indices.sort().values
        for converted in (masked, sparse):
            layer = converted.get_submodule(name)
            assert torch.equal(layer.active(), best) and torch.equal(layer.active_values(), weight[best])
    x = torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(sparse(x), masked(x))


def test_an_unknown_topology():
    with pytest.raises(InvalidArgumentError, match="topology='largest'; use one of random, magnitude"):
        sparsify(nn.Linear(4, 4), 0.5, topology="largest")
    with pytest.raises(InvalidArgumentError, match="leave scheme, seed, topology and structure out"):
        sparsify(nn.Linear(4, 4), topology="magnitude")


def test_subclasses_are_named_and_stay_dense(capsys):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = sparsify(nn.Sequential(Doubled(4, 4), nn.Linear(4, 4)), 0.5)
    assert type(model[0]) is Doubled and type(model[1]) is SparseLinear
    assert "16 of 32 weights stay dense: 0 (Doubled)" in capsys.readouterr().err


def test_multiply_adds_of_a_one_dimensional_convolution():
    model = mask_model(nn.Sequential(nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(48, 2)), 0.5)
    expected = {"0": (72 * 8, 36 * 8), "1": (96, 48)}
    for converted, stored in ((model, 0), (sparsify(model), 1)):
        table = multiply_adds(converted, (4, 16))
        assert table.loc["0"].tolist() == [expected["0"][stored], expected["0"][1]]
        assert table.loc["2"].tolist() == [expected["1"][stored], expected["1"][1]]


def test_attention_whose_weights_are_computed_stays_dense(capsys):
    layer = nn.MultiheadAttention(8, 2)
    prune.random_unstructured(layer, "in_proj_weight", 0.5)
    model = nn.ModuleList([layer, nn.Linear(8, 8)])
    assert list(sparse_layers(mask_model(model, 0.5))) == ["1"]
    assert "0 (MultiheadAttention)" in capsys.readouterr().err
