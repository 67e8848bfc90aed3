"""Compiled code where it meets processes, threads and Ctrl-C, and where it may not be compiled at all."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from truly_sparse import DynamicSparsity, RigL, fuse, sparse_layers, sparsify, warmup
from truly_sparse.interrupt import undivided
from tutorial_lib import fit, load_checkpoint, mask_model
from tutorial_lib.project import ROOT

# A program's beginning: a chain and a batch, the same in every process, and what the dense chain makes of it.
CHAIN = """
import multiprocessing, os, sys, threading, warnings
import torch
from torch import nn
from truly_sparse import densify, fuse, sparsify
from tutorial_lib import mask_model

torch.manual_seed(0)
parts = nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 20), nn.ReLU()
masked = mask_model(nn.Sequential(*parts, nn.Linear(20, 4)), 0.5)
model, dense, x = fuse(sparsify(masked)), densify(masked), torch.randn(70, 2, 6, 6)

def results(network):
    here = x.clone().requires_grad_()
    y = network(here)
    y.square().sum().backward()
    return y.detach(), here.grad

def check():
    for found, expected in zip(results(model), results(dense)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
"""


def run(program, script=None, timeout=170, **environment):
    """Run the chain and what follows it; from a file if one is given, which spawned children import."""
    if script is not None:
        script.write_text(CHAIN + program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *(["-c", CHAIN + program] if script is None else [str(script)])],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.long
def test_bounds_checks_find_nothing(survived, pytestconfig):
    """In a cache of its own, which pytest keeps: code that was compiled without checks must not be taken for it.

    The first time, to compile it takes two minutes or more.
    """
    cache = pytestconfig.cache.mkdir("numba-boundscheck")
    out = run("check(); print('right')", timeout=600, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(cache))
    assert out.endswith("right\n")
    survived("compiled code")


def test_without_compilation_plain_torch_does_the_work_and_says_so_once(survived):
    program = """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    check()
    check()
print(*[w.message for w in caught if "plain torch, slower" in str(w.message)])
"""
    said = run(program, NUMBA_DISABLE_JIT="1")
    assert said.count("plain torch, slower") == said.count("\n") == 1 and "(NUMBA_DISABLE_JIT is set, " in said
    survived("compiled code")


def test_more_threads_than_cores_give_the_same_bits(survived):
    program = """
found = []
for threads in (1, 2, 4):
    torch.set_num_threads(threads)
    found.append(results(model))
print(all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other)))
"""
    assert run(program, NUMBA_NUM_THREADS="4").endswith("True\n")
    survived("compiled code", 3)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_computes_in_plain_torch(threads, survived):
    """GNU OpenMP ends a process that was forked from one that used it, and torch's own threads are gone as well."""
    program = f"""
torch.set_num_threads({threads})
check()
def child():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check()
    assert [w for w in caught if "forked" in str(w.message)]
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
print(process.exitcode)
if process.is_alive():
    process.kill()
check()
"""
    assert run(program).endswith("0\n")
    survived("compiled code")


def test_workers_of_a_data_loader_may_use_a_sparse_layer(survived):
    program = """
check()
def collate(images):
    with torch.no_grad():
        return model(torch.stack(images))
with torch.no_grad():
    expected = dense(x)
how = {"num_workers": 2, "timeout": 60, "multiprocessing_context": "fork"}
loader = torch.utils.data.DataLoader(x, 35, collate_fn=collate, **how)
torch.testing.assert_close(torch.cat(list(loader)), expected, rtol=1e-4, atol=1e-5)
print("right")
"""
    assert run(program).endswith("right\n")
    survived("compiled code", 2)


def test_spawned_children_use_the_kernels(survived, tmp_path):
    program = """
warnings.filterwarnings("error", "the fast sparse kernels")

def collate(images):
    with torch.no_grad():
        return model(torch.stack(images))

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=check)
    process.start()
    process.join(120)
    assert process.exitcode == 0, process.exitcode
    how = {"num_workers": 1, "timeout": 120, "multiprocessing_context": "spawn"}
    loader = torch.utils.data.DataLoader(x, 35, collate_fn=collate, **how)
    torch.testing.assert_close(torch.cat(list(loader)), dense(x).detach(), rtol=1e-4, atol=1e-5)
    check()
    print("right")
"""
    assert run(program, tmp_path / "children.py", PYTHONPATH=str(ROOT)).endswith("right\n")
    survived("compiled code", 2)


def test_two_threads_may_meet_the_kernels_first_together(survived):
    program = """
failed = []
def first():
    try:
        with torch.no_grad():
            torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=first) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failed)
"""
    assert run(program).endswith("[]\n")
    survived("compiled code")


COMPILED_AGAIN = """
from numba.core.event import install_recorder
from truly_sparse import DynamicSparsity, TrainingStep, warmup
with install_recorder("numba:compile") as compiled:
    warmup()
    check()
    optimizer = torch.optim.Adam(model.parameters())
    step, driver = TrainingStep(model, optimizer), DynamicSparsity(model, optimizer, every=1, grow="gradient")
    for _ in range(3):
        step(x, torch.arange(70) % 4)
        driver.step()
print([event.data["dispatcher"].py_func.__qualname__ for _, event in compiled.buffer if event.is_start])
"""


def test_a_second_process_compiles_nothing(survived):
    """Kernels print a line before they are compiled; numba records what else is."""
    run(COMPILED_AGAIN)
    done = subprocess.run(
        [sys.executable, "-c", CHAIN + COMPILED_AGAIN],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=True,
    )
    assert done.stdout.endswith("[]\n") and "Compiling kernels" not in done.stderr, done.stdout + done.stderr
    survived("compiled code")


# ------------------------------------------------------------------------------------------ in this process


def network(seed):
    torch.manual_seed(seed)
    return fuse(
        sparsify(mask_model(nn.Sequential(nn.Flatten(), nn.Linear(784, 60), nn.ReLU(), nn.Linear(60, 10)), 0.9))
    )


def trained(model, x, y):
    optimizer = torch.optim.Adam(model.parameters())
    driver = DynamicSparsity(model, optimizer, every=3, grow="gradient")
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        driver.step()
    return [t.clone() for t in model.state_dict().values()]


def test_two_threads_train_two_models_at_once(survived, digits):
    x, y = digits.train_x[:100], digits.train_y[:100]
    alone = [trained(network(seed), x, y) for seed in (0, 1)]
    models = [network(seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda model: trained(model, x, y), models))
    assert all(
        torch.equal(a, b) for one, other in zip(alone, together, strict=True) for a, b in zip(one, other, strict=True)
    )
    survived("compiled code", 2)


def test_two_threads_ask_one_model_at_once(survived):
    model = network(0)
    inputs = [torch.randn(batch, 784) for batch in range(1, 101)]

    @torch.no_grad()
    def answer(x):
        return model(x)

    alone = [answer(x) for x in inputs]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(answer, inputs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    survived("compiled code")


def works(model, nnz):
    layers = sparse_layers(model).values()
    assert [len(layer.active()) for layer in layers] == [len(layer.values) for layer in layers] == nnz
    x = torch.randn(40, 784)
    expected = x
    for layer in layers:
        expected = layer.to_dense_layer()(expected)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def ctrl_c():
    """Let Ctrl-C interrupt also where a shell has started the tests in its background, and so has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_the_outer_of_two_changes(ctrl_c):
    done = []
    with pytest.raises(KeyboardInterrupt), undivided():
        with undivided():
            signal.raise_signal(signal.SIGINT)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_training_leaves_a_model_that_works(ctrl_c, survived, digits, tmp_path):
    warmup()
    model = network(0)
    nnz, path = [len(layer.values) for layer in sparse_layers(model).values()], tmp_path / "run"
    recipe = RigL(every=1, until=1.0)
    before, interrupted = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT)), 0
    try:
        for attempt in range(20):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.01 + 0.013 * attempt)
                fit(model, digits, epochs=500, batch_size=32, sparsity=recipe, progress=False, checkpoint=path)
            except KeyboardInterrupt:
                interrupted += 1
            works(model, nnz)
            if path.exists():
                load_checkpoint(path, model=copy.deepcopy(model))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted == 20 and sorted(tmp_path.iterdir()) in ([], [path])
    fit(model, digits, epochs=1, sparsity=recipe, progress=False)
    survived("compiled code", interrupted)


INTERRUPTED_START = """
import os, signal, torch
from truly_sparse.backend import kernels_for
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    kernels_for(torch.ones(1))
except KeyboardInterrupt:
    print("interrupted,", kernels_for(torch.ones(1)).__name__)
"""


def test_ctrl_c_while_the_kernels_are_imported_leaves_them_whole(survived):
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_START], capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    assert run.stdout.endswith("interrupted, truly_sparse.cpu.chain\n"), run.stdout + run.stderr
    survived("compiled code")


def test_ctrl_c_waits_until_a_rewiring_is_complete(ctrl_c, survived):
    def rewired(interrupt):
        model = network(0)
        optimizer = torch.optim.Adam(model.parameters())
        driver = DynamicSparsity(model, optimizer, every=1)
        model(torch.ones(3, 784)).sum().backward()
        optimizer.step()
        layer = next(iter(sparse_layers(model).values()))
        build = layer.build_index

        def build_interrupted(connections):
            os.kill(os.getpid(), signal.SIGINT)
            return build(connections)

        if interrupt:
            layer.build_index = build_interrupted
            with pytest.raises(KeyboardInterrupt):
                driver.step()
        else:
            driver.step()
        state = [s for of in optimizer.state.values() for s in of.values()]
        return [*model.state_dict().values(), *state], driver.rewirings

    (whole, once), (cut, again) = rewired(False), rewired(True)
    assert once == again == 1 and all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))
    survived("compiled code")
