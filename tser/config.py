"""The configuration of a run: typed, frozen, strict, and free of torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Potential = Annotated[float, Field(ge=-1e30, le=1e30)]
Rate = Annotated[float, Field(gt=0, lt=1e38)]
Seconds = Annotated[float, Field(ge=1e-12, le=1e12)]
Weight = Annotated[float, Field(ge=0, le=1e6)]

MAX_ADAMW_LR = 0.03
"""AdamW's steps are as long as its learning rate; longer ones destroy the weights."""


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class DataConfig(_Section):
    """Which images, and how they are augmented."""

    name: str = "digits"
    """A data set known to tser, or the path of an ``.npz`` file or of a folder of images."""
    root: str = ""
    """Folder to look in; empty: the usual places."""
    limit_train: int = Field(0, ge=0)
    """Use a stratified subset of this many training images; 0: all."""
    shift: int = Field(1, ge=0)
    """Random shift of training images by up to this many pixels; in a folder of images a random
    part of each is shown instead."""
    flip: bool = False
    """Random horizontal flip of training images."""
    auto_augment: Literal["none", "cifar10", "imagenet", "svhn"] = "none"
    """AutoAugment of training images, with the policy found for this data set."""
    cutout: int = Field(0, ge=0)
    """Side of the square that is erased from every training image, in pixels; 0: none."""
    size: int = Field(224, ge=1, le=65_536)
    """Side to which the images of a folder are scaled and cropped, in pixels."""
    workers: int = Field(-1, ge=-1, le=1024)
    """Processes that prepare images; 0: the training process itself; -1: one a core, 8 at most,
    for a folder of images, AutoAugment or arrays too large for the GPU, otherwise none."""


class TeacherConfig(_Section):
    """The ANN teacher."""

    arch: Literal["convnet", "resnet18", "resnet34", "resnet50", "vgg11_bn", "vgg16_bn"] = "convnet"
    """A small CNN of our own, or a network of torchvision."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """First layers (VGG: last layers) of torchvision's networks, for small or large images."""
    factory: str = ""
    """``package.module:function`` of a user's own ANN; set by ``--teacher``, which alone may
    import it. Used with the weights that it comes with, unless ``train`` is set."""
    path: str = ""
    """Weights of a trained teacher (.safetensors) of this shape; empty: train one."""
    weights: str = ""
    """Weights that torchvision publishes for ``arch``, by name: IMAGENET1K_V1, ..., DEFAULT."""
    train: bool = True
    """Train it for ``epochs`` before the student; false: it comes with trained weights."""
    width: int = Field(32, ge=1, le=65_536)
    """Channels of the first stage of the convnet."""
    stages: int = Field(2, ge=1, le=64)
    """Residual blocks of the convnet; each after the first halves the image and doubles the
    channels."""
    epochs: int = Field(30, ge=1, le=1_000_000)
    """Training epochs when no weights are given."""
    lr: Rate = 0.1
    """Peak learning rate."""
    precision: Literal["same", "float32", "bf16"] = "same"
    """In which it computes for the student: as the student does, or as said here."""
    cache: str = ""
    """A file of its logits for every shift and flip of the training images, filled as they are
    needed and used by every run with the same teacher, images, shift and flip; empty: none."""

    @model_validator(mode="after")
    def _one_source(self) -> TeacherConfig:
        named = [key for key in ("factory", "path", "weights") if getattr(self, key)]
        if "weights" in named and len(named) > 1:
            raise ValueError(f"weights and {named[0]} exclude each other")
        if not self.train and not named:
            raise ValueError("train = false needs trained weights: a path, weights or a factory")
        return self


class StudentConfig(_Section):
    """The spiking student."""

    factory: str = ""
    """``package.module:function`` of a user's own model; set by ``--student``, which alone may
    import it. ``arch``, ``stem``, ``width``, ``stages``, ``norm`` and [neuron] are then not
    used."""
    arch: Literal["convnet", "resnet18", "resnet19", "resnet34", "vgg11", "vgg16"] = "convnet"
    """Architecture."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """First layers of a ResNet: 3x3 at full size, or 7x7 with stride 2 and a pool."""
    timesteps: int = Field(4, ge=1, le=10_000)
    """T, the number of time steps."""
    width: int = Field(32, ge=1, le=65_536)
    """Channels of the first stage."""
    stages: int = Field(2, ge=1, le=64)
    """Residual blocks of the convnet; each after the first halves the image and doubles the
    channels."""
    norm: Literal["joint", "per-step"] = "joint"
    """Batch statistics in training: over all T * B maps together, or of every step by itself. The
    running statistics, and so the trained network, are one set either way."""


class NeuronConfig(_Section):
    """LIF neurons, Norse's LIFBox parameters."""

    dt: Seconds = 1e-3
    """Time step [s]."""
    tau_mem: Seconds = 2e-3
    """Membrane time constant [s]; dt / tau_mem = 0.5 is the paper's decay."""
    learn_tau: bool = False
    """Learn tau_mem, one for each layer, starting from the given one (Fang et al., ICCV 2021)."""
    v_th: Potential = 1.0
    """Firing threshold."""
    v_leak: Potential = 0.0
    """Leak (resting) potential."""
    v_reset: Potential = 0.0
    """Potential after a spike."""
    surrogate: Literal["triangle", "superspike", "arctan", "sigmoid"] = "triangle"
    """Surrogate derivative of the spike."""
    alpha: float = Field(1.0, gt=0, le=1e6)
    """Sharpness of the surrogate."""
    detach_reset: bool = False
    """Stop the gradient at the reset."""

    @model_validator(mode="after")
    def _stable(self) -> NeuronConfig:
        if self.dt > self.tau_mem:
            raise ValueError(f"dt = {self.dt:g} s must not exceed tau_mem = {self.tau_mem:g} s")
        if not self.v_th > max(self.v_leak, self.v_reset):
            raise ValueError("v_th must lie above v_leak and v_reset")
        if self.learn_tau and self.dt == self.tau_mem:
            raise ValueError("tau_mem must be longer than dt where it is learned")
        return self


class LossConfig(_Section):
    """The terms of the TSER loss (arXiv 2503.03144) and their weights."""

    method: str = ""
    """A method of ``tser.methods`` that set the terms below; empty: they were set one by one."""
    ce: Literal["per-step", "aggregated"] = "per-step"
    """Cross-entropy of every step, or of the mean logits."""
    kl: Literal["per-step", "aggregated", "none"] = "per-step"
    """Divergence from the teacher at every step, of the mean logits, or not at all."""
    alpha: Weight = 1.0
    """Weight of the KL term. Our choice: the paper's value could not be read."""
    gamma: Weight = 0.01
    """Weight of the entropy term. Our choice: the paper's value could not be read."""
    self_weight: Weight = 0.0
    """Weight of self-distillation: KL from the mean over all steps to each step."""
    temperature: float = Field(3.0, ge=1e-3, le=1e6)
    """Softmax temperature of the KL terms."""
    weighting: Literal["additive", "convex"] = "additive"
    """CE + alpha KL, or (1 - alpha) CE + alpha KL."""
    entropy_at: Literal["temperature", "one"] = "temperature"
    """Take the entropy of softmax(z / temperature) or of softmax(z)."""

    @model_validator(mode="after")
    def _consistent(self) -> LossConfig:
        if self.weighting == "convex" and self.alpha > 1:
            raise ValueError(f"alpha = {self.alpha:g} must be at most 1 with convex weighting")
        return self


class TrainConfig(_Section):
    """Optimisation of the student (the teacher shares all but epochs and lr)."""

    epochs: int = Field(30, ge=1, le=1_000_000)
    """Training epochs; the last one is reported."""
    batch_size: int = Field(64, ge=2, le=2**31)
    """Images a step, over all processes and parts; batch norm needs two."""
    accumulate: int = Field(1, ge=1, le=2**31)
    """Parts in which a batch goes through the network, to save memory; batch norm sees a part at a
    time, otherwise the step is the same."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW, which needs a learning rate of about 0.001."""
    lr: Rate = 0.1
    """Peak learning rate; one cosine to zero."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD; the first beta of AdamW."""
    weight_decay: Weight = 5e-4
    """L2 on weights (AdamW: decoupled); never on biases and batch-norm parameters."""
    clip_norm: float = Field(0.0, ge=0, le=1e30)
    """Scale the gradient of a step down to this norm if it is larger; 0: never."""
    warmup_epochs: float = Field(1.0, ge=0, le=1_000_000)
    """Epochs of linear warm-up."""
    curriculum_epochs: int = Field(0, ge=0)
    """Train the student with a single time step for so many epochs, then with T."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: convolutions and linear layers compute in bfloat16 (autocast); membranes, the loss,
    weights and validation stay in float32."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seeds weights, order of images and augmentation."""
    channels_last: bool = True
    """Keep feature maps with the channels innermost, which convolutions run faster on."""
    compile: Literal["auto", "neuron", "step", "off"] = "auto"
    """Compile the student's neurons or the whole of its step with torch.compile, for faster steps
    after a wait of 5 s a spiking layer, once; auto: what saves several times that wait, if
    anything does and there is a compiler."""
    low_memory: bool = False
    """Keep a third of the student's activations for the backward pass and compute the others
    again: for little time where the step is compiled, as auto does then, for half as much time
    again elsewhere."""
    deterministic: bool = False
    """Only operations that give the same bits on every run on this machine; an error if one has
    no such form."""
    threads: int = Field(0, ge=0, le=1024)
    """Threads of the CPU; their number decides the last bits of sums. 0: as PyTorch likes, with
    ``deterministic`` one."""
    sync_bn: bool = False
    """Batch-norm statistics over the whole batch when several processes train (GPUs only);
    otherwise over each process's share, and those of the first process are saved."""
    checkpoint_steps: int = Field(0, ge=0, le=2**31)
    """Also write a checkpoint after every so many steps within an epoch; 0: after epochs only."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, below ``tensorboard/`` in the run folder."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """cpu, cuda, cuda:N, mps, or auto: a GPU if there is one."""

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        if self.batch_size < 2 * self.accumulate:
            raise ValueError(
                f"accumulate = {self.accumulate} splits batch_size = {self.batch_size} into parts "
                "of fewer than two images, which batch norm needs"
            )
        if self.curriculum_epochs >= self.epochs:
            raise ValueError(
                f"curriculum_epochs = {self.curriculum_epochs} leaves none of the {self.epochs} "
                "epochs for the full T"
            )
        return self


class RunConfig(_Section):
    """Everything that decides a run."""

    preset: str = ""
    """The preset this configuration started from, for the record."""
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    neuron: NeuronConfig = NeuronConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _sensible(self) -> RunConfig:
        train, teacher = self.train, self.teacher
        rates = {"train.lr": train.lr}
        if teacher.train and not teacher.path:
            rates["teacher.lr"] = teacher.lr
        high = [key for key, rate in rates.items() if rate > MAX_ADAMW_LR]
        if train.optimizer == "adamw" and high:
            advice = " ".join(f"--set {key}=0.001" for key in high)
            raise ValueError(
                f"{high[0]} = {rates[high[0]]:g} is a rate for SGD, with which AdamW does not "
                f"learn; use {advice}"
            )
        if train.curriculum_epochs and self.student.timesteps == 1:
            raise ValueError("train.curriculum_epochs needs a student.timesteps above 1")
        if train.sync_bn and self.student.norm == "per-step":
            raise ValueError("train.sync_bn and student.norm = per-step exclude each other")
        return self
