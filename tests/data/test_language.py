"""The language of planted texts, alone and in a mixed corpus, with the interval that the sample size allows."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.evaluate.statistics import wilson
from stagecraft.data.language import LanguageId
from tests.curate.intervals import recall_and_precision

# Three passages a language, written for this test: plain statements, as web text has them.
TEXTS = {
    "en": ["The river rises in the hills and reaches the sea after two hundred miles of slow water.",
           "Before you start the engine, check the oil and make sure that nobody stands behind the car.",
           "She had never seen such a large library, and she decided to read every book in it."],
    "de": ["Der Fluss entspringt in den Bergen und erreicht nach langer Strecke das Meer.",
           "Bevor Sie den Motor starten, prüfen Sie bitte das Öl und schauen Sie hinter das Auto.",
           "Sie hatte noch nie eine so große Bibliothek gesehen und wollte jedes Buch darin lesen."],
    "fr": ["La rivière prend sa source dans les montagnes et rejoint la mer après un long voyage.",
           "Avant de démarrer le moteur, vérifiez l'huile et regardez derrière la voiture.",
           "Elle n'avait jamais vu une si grande bibliothèque et décida d'en lire tous les livres."],
    "es": ["El río nace en las montañas y llega al mar después de un largo camino.",
           "Antes de arrancar el motor, compruebe el aceite y mire detrás del coche.",
           "Nunca había visto una biblioteca tan grande y decidió leer todos los libros."],
    "it": ["Il fiume nasce tra le montagne e raggiunge il mare dopo un lungo cammino.",
           "Prima di avviare il motore, controllate l'olio e guardate dietro la macchina.",
           "Non aveva mai visto una biblioteca così grande e decise di leggere tutti i libri."],
    "pt": ["O rio nasce nas montanhas e chega ao mar depois de um longo caminho.",
           "Antes de ligar o motor, verifique o óleo e não se esqueça de olhar para trás do carro.",
           "Ela nunca tinha visto uma biblioteca tão grande e decidiu ler todos os livros."],
    "nl": ["De rivier ontspringt in de bergen en bereikt na een lange weg de zee.",
           "Controleer de olie voordat u de motor start en kijk of er niemand achter de auto staat.",
           "Ze had nog nooit zo'n grote bibliotheek gezien en besloot elk boek te lezen."],
    "pl": ["Rzeka wypływa z gór i po długiej drodze wpada do morza.",
           "Przed uruchomieniem silnika sprawdź olej i upewnij się, że nikt nie stoi za samochodem.",
           "Nigdy nie widziała tak dużej biblioteki i postanowiła przeczytać wszystkie książki."],
    "ru": ["Река берёт начало в горах и после долгого пути впадает в море.",
           "Перед запуском двигателя проверьте масло и убедитесь, что за машиной никого нет.",
           "Она никогда не видела такой большой библиотеки и решила прочитать все книги."],
    "tr": ["Nehir dağlardan doğar ve uzun bir yolculuktan sonra denize ulaşır.",
           "Motoru çalıştırmadan önce yağı kontrol edin ve arabanın arkasına bakın.",
           "Hiç bu kadar büyük bir kütüphane görmemişti ve bütün kitapları okumaya karar verdi."],
    "ja": ["その川は山から流れ出し、長い旅のあとで海に着きます。",
           "エンジンをかける前に、油を調べて、車の後ろに人がいないか確かめてください。",
           "彼女はこんなに大きな図書館を見たことがなく、すべての本を読むことにしました。"],
    "zh": ["这条河发源于山中，经过漫长的路程流入大海。",
           "启动发动机之前，请检查机油，并确认车后没有人。",
           "她从来没有见过这么大的图书馆，决定读完里面所有的书。"],
    "ar": ["ينبع النهر من الجبال ويصل إلى البحر بعد رحلة طويلة.", "قبل تشغيل المحرك تأكد من الزيت وانظر خلف السيارة.",
           "لم تر من قبل مكتبة كبيرة كهذه وقررت أن تقرأ كل الكتب."],
}
LABELLED = [(code, text) for code, texts in TEXTS.items() for text in texts]


@pytest.fixture(scope="module")
def model() -> LanguageId:
    return LanguageId()


def test_planted_languages_are_found(model):
    hits = sum(model.identify(text)[0] == code for code, text in LABELLED)
    assert wilson(hits, len(LABELLED), 0.95)[0] > 0.85, hits


def test_a_mixed_corpus_is_sorted_by_language_and_probability(model):
    """Fifteen documents a language, of one to three passages in any order, and what keeping each of the languages alone would keep."""
    corpus = [(code, " ".join(chosen)) for code, texts in TEXTS.items() for size in (1, 2, 3) for chosen in permutations(texts, size)]
    said = [(code, found) for code, text in corpus for found, probability in [model.identify(text)] if probability >= 0.6]
    right = sum(code == found for code, found in said)
    recall, precision = recall_and_precision("languages", right, len(corpus), sum(found in TEXTS for _, found in said) - right)
    assert recall > 0.9 and precision > 0.97
    assert [code for code, found in said if found == "en"] == ["en"] * 15


@pytest.mark.parametrize(("major", "minor"), [("en", "fr"), ("fr", "en"), ("de", "ru"), ("zh", "en"), ("es", "ar")])
def test_the_larger_part_of_a_document_decides(model, major, minor):
    text = "\n\n".join([TEXTS[minor][0], *TEXTS[major] * 2])
    pure = model.identify("\n".join(TEXTS[major]))
    found, probability = model.identify(text)
    assert found == major and probability < pure[1]


def test_only_the_first_characters_and_no_newlines_matter(model):
    english = " ".join(TEXTS["en"])
    head = (english + " ") * 10
    assert len(head) > 2000
    assert model.identify(head + "Это предложение написано по-русски. " * 500) == model.identify(head)
    assert model.identify(english.replace(" ", "\n")) == model.identify(english)


@pytest.mark.parametrize("text", ["", " \n", "12 + 30 = 42", "?!…", "1 " * 1000 + "words after the part that is read"])
def test_no_letters_is_undetermined(model, text):
    assert model.identify(text) == ("und", 0.0)


@given(st.text(st.characters(), max_size=300))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_text_has_a_code_and_a_probability(text):
    code, probability = ANY.identify(text)
    assert code.isalpha() and code.islower() and 0 <= probability <= 1


ANY = LanguageId()
